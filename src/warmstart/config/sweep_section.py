"""The settings of `warmstart sweep`: they are its own, and no part of a run's config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from warmstart.config.section import Section
from warmstart.config.sweep_values import Choice, Varied
from warmstart.config.values import Names, OptionalDuration, OptionalInt
from warmstart.errors import UserError

DEFAULT_TRIALS = 20
HIDDEN = "***"
_PASSWORD = re.compile(r"(://[^:/@]*):[^?]+@|([?&]password)=[^&]*")
_SQLITE_FILE = re.compile(r"(sqlite[+\w]*:///)(?!:memory:|file:)([^?]+)(.*)")
# What may be another one when a sweep goes on: how much, and where it computes.
OF_EXECUTION = ("trials", "slots", "devices", "engine", "ray_address", "time_budget", "output_dir")


class SweepConfig(Section):
    """What is varied, how it is searched, and where it computes."""

    set: Varied = Field(
        ...,
        description="NAME=VALUES, once for each setting: .15,.20,.25 or 2e-4..8e-4:log or 16..64:int:16 (a step);"
        " values with commas: a,b|c",
    )
    method: Literal["auto", "grid", "random", "tpe"] = Field(
        "auto",
        description="grid (all combinations of lists), random, tpe (what did well is looked at more closely); auto:"
        " grid for lists, else tpe",
    )
    trials: OptionalInt = Field(
        None, ge=1, description=f"how many [default: the whole grid, else {DEFAULT_TRIALS}]"
    )
    prune: Literal["median", "halving", "none"] = Field(
        "median",
        description="stop early those below the median of the finished ones; halving: pause all at a third (a ninth,"
        " ...) of their steps, and go on with the best third",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the values drawn; a run's own is in CONFIG")
    slots: OptionalInt = Field(
        None, ge=1, description="trials at a time, which share the CPU's cores [default: 1]"
    )
    devices: Names = Field((), description="one trial at a time on each: cuda:0,cuda:1")
    time_budget: OptionalDuration = Field(
        None, description="no trial begins after it, and those that run are paused: 20m"
    )
    storage: str | None = Field(
        None,
        description="URL of Optuna's storage, which several machines may share [default: sqlite:///OUT/sweep.db]",
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="where processes are started: here, or on a Ray cluster that sees these folders"
    )
    ray_address: str | None = Field(None, description="ray: the cluster's address [default: a local one]")
    output_dir: str | None = Field(
        None, description="new folder, or that of a sweep to go on with [default: CONFIG-sweep beside it]"
    )

    @property
    def searched_by(self) -> str:
        """The method, decided."""
        if self.method != "auto":
            return self.method
        return "grid" if all(isinstance(values, Choice) for _, values in self.set) else "tpe"

    @property
    def shown_storage(self) -> str | None:
        """Without its password, as it is written down."""
        return None if self.storage is None else _PASSWORD.sub(_hidden, self.storage)

    @field_validator("storage")
    @classmethod
    def _from_anywhere(cls, url: str | None) -> str | None:
        """A file of SQLite by its absolute path: a sweep goes on from another working directory, too."""
        found = None if url is None else _SQLITE_FILE.fullmatch(url)
        return url if found is None else f"{found[1]}{Path(found[2]).absolute().as_posix()}{found[3]}"


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}:{HIDDEN}@" if found[1] else f"{found[2]}={HIDDEN}"


def problems(settings: SweepConfig) -> list[UserError]:
    """Settings that nothing would read, and such as contradict each other."""
    found = []
    endless = [name for name, values in settings.set if values.grid is None]
    if settings.method == "grid" and endless:
        found.append(
            UserError(
                f"--method grid with a range: {', '.join(endless)}",
                "lists, or ranges with a step",
                f"--set {endless[0]}=A,B,C",
            )
        )
    if settings.searched_by == "grid" and settings.trials is not None:
        found.append(
            UserError(
                "--trials with a grid, all of which is tried", "--method random or tpe", "leave --trials out"
            )
        )
    if settings.searched_by == "grid" and settings.seed != 0:
        found.append(
            UserError(
                "--seed with a grid, all of which is tried", "--method random or tpe", "leave --seed out"
            )
        )
    if settings.devices and settings.slots is not None:
        found.append(UserError("--slots beside --devices", "one slot per device", "leave --slots out"))
    if settings.engine == "ray" and settings.devices:
        found.append(
            UserError("--devices with --engine ray", "--slots: Ray says where", "leave --devices out")
        )
    if settings.engine == "local" and settings.ray_address is not None:
        found.append(UserError("--ray-address without --engine ray", "both", "add --engine ray"))
    if settings.time_budget is not None and settings.time_budget.unit != "seconds":
        found.append(UserError(f"--time-budget {settings.time_budget}", "a time: 20m, 2h"))
    return found
