"""Processes of trials without the seconds that importing torch takes: see fresh.py."""

from __future__ import annotations

import sys

import fresh
from warmstart.methods.trials.process import Process, command_of, launch_here
from warmstart.methods.trials.trial import Slot, Trial


def launch(trial: Trial, slot: Slot) -> Process:
    if sys.platform != "linux":
        return launch_here(trial, slot)
    _, _, module, *arguments = command_of(trial, slot)
    return fresh.Started(module, arguments, trial.cwd, trial.beside(".txt"))
