"""Processes of trials and of proofs without the seconds that importing torch takes: see fresh.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import fresh
from warmstart.methods.trials.process import Process, command_of, launch_here
from warmstart.methods.trials.trial import Slot, Trial
from warmstart.verify import processes

_start = processes.start


def launch(trial: Trial, slot: Slot) -> Process:
    if sys.platform != "linux":
        return launch_here(trial, slot)
    _, _, module, *arguments = command_of(trial, slot)
    return fresh.Started(module, arguments, trial.cwd, trial.beside(".txt"))


def start(words: Sequence[str], told: Path) -> fresh.Started | subprocess.Popen[bytes]:
    return (
        fresh.Started("warmstart", words, Path.cwd(), told)
        if sys.platform == "linux"
        else _start(words, told)
    )
