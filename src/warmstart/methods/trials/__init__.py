"""Trials: ordinary runs with other settings, each in a process of its own, watched while they train."""
