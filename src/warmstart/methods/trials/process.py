"""Processes of trials on this machine: started, asked to save and leave, and found again after a crash of ours."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from warmstart.config import io as config_io
from warmstart.config.io import to_yaml
from warmstart.config.schema import Config, Leaf, leaves
from warmstart.console import log
from warmstart.errors import UserError, listing
from warmstart.methods.trials.owner import read_who, who_is
from warmstart.methods.trials.trial import Slot, Trial
from warmstart.run import layout, writer
from warmstart.run.process import is_gone
from warmstart.run.reader import Run

_CHILD = "warmstart.methods.trials.child"
_LOOKS_EVERY = 0.1  # seconds
_PATIENCE = 600.0  # seconds for a process that lost its parent to save and leave


class Process(Protocol):
    """A process that runs a trial. `terminate` asks it to save and leave (on Windows: it ends at once, and goes on
    from its last checkpoint), `kill` ends it."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


# Starts the process of a trial, which is all that differs between this machine and a cluster.
Launch = Callable[[Trial, Slot], Process]


def prepare(trial: Trial) -> None:
    """The trial's settings beside its run; what is no run is removed, and a process that still writes it is ended.

    Raises:
        UserError: another machine is writing the run, or the process does not end.
    """
    trial.run.parent.mkdir(parents=True, exist_ok=True)
    _end_orphan(trial)
    if layout.is_run(trial.run):
        status = Run(trial.run).status
        if status["state"] == "running" and status.get("host") != platform.node():
            raise UserError(
                f"trial {trial.number} is running on {status.get('host')}",
                "a machine of its own for each folder of trials",
                f"wait for it; if {status.get('host')} is gone for certain, remove {trial.run / layout.STATUS}",
            )
        return
    shutil.rmtree(trial.run, ignore_errors=True)  # it ended before its first step
    writer.write_text(trial.beside(".yaml"), to_yaml(trial.config, trial.loaded.origins))


def is_ours(trial: Trial) -> bool:
    """Whether the trial has a run, and no other machine was writing it."""
    return layout.is_run(trial.run) and Run(trial.run).status.get("host") in (None, platform.node())


def check_settings(trial: Trial) -> None:
    """UserError: the trial's run was made with other settings than the trial has."""
    file = trial.beside(".yaml")
    if not layout.is_run(trial.run) or not file.exists():
        return
    made, asked = config_io.load({}, str(file)).config, trial.config
    others = [leaf.path for leaf in leaves() if _value(made, leaf) != _value(asked, leaf)]
    if others:
        raise UserError(
            f"{trial.run} was made with other settings than trial {trial.number} has: {listing(others, 4)}",
            "the folder in which these trials were begun",
            "another --output-dir",
        )


def _value(config: Config, leaf: Leaf) -> Any:
    return getattr(getattr(config, leaf.section), leaf.name)


def command_of(trial: Trial, slot: Slot) -> list[str]:
    own = [] if slot.device is None else [slot.device]
    return [
        sys.executable,
        "-m",
        _CHILD,
        str(trial.run.absolute()),
        str(trial.beside(".yaml").absolute()),
        *own,
    ]


def environment_of(slot: Slot) -> dict[str, str]:
    return {} if slot.threads is None else {"OMP_NUM_THREADS": str(slot.threads)}


def launch_here(trial: Trial, slot: Slot) -> Process:
    """In a session of its own, so that Ctrl-C reaches us alone, and every trial is stopped in order."""
    with trial.beside(".txt").open("wb") as told:  # what a process before it said is no reason of this one
        process = subprocess.Popen(
            command_of(trial, slot),
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            cwd=trial.cwd,
            env={**os.environ, **environment_of(slot)},
            start_new_session=True,
        )
    writer.write_json(trial.beside(".pid"), who_is(process.pid))
    return process


def last_words(trial: Trial, code: int) -> str:
    """Why a process says that it ended: its error, else how it ended and its last lines."""
    file = trial.beside(".txt")
    told = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if "error: " in told and code > 0:
        return told.rpartition("error: ")[2].strip()
    how = f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"
    return "\n".join([how, *told.splitlines()[-5:]])


def _end_orphan(trial: Trial) -> None:
    """End the process of a trial whose parent was killed: it saves, and the trial goes on from there."""
    file = trial.beside(".pid")
    if not file.exists():
        return
    who = read_who(file)
    if who["host"] != platform.node() or os.name != "posix":
        return  # on Windows nobody knows whether the number is still that of the same process
    if not is_gone(who["pid"], who["born"]):
        log.info("trial %d is still running: it saves and ends first", trial.number)
        os.kill(who["pid"], signal.SIGTERM)
        end = time.monotonic() + _PATIENCE
        while not is_gone(who["pid"], who["born"]):
            if time.monotonic() > end:
                raise UserError(f"process {who['pid']} of trial {trial.number} does not end", "that it ends")
            time.sleep(_LOOKS_EVERY)
    file.unlink()
