"""What a trial is, where it computes, and what came out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from warmstart.analysis.compare.sides import Side
from warmstart.config.io import Loaded
from warmstart.config.schema import Config
from warmstart.run import layout
from warmstart.run.reader import Run

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """Settings, and the directory of the run that is made with them: an ordinary run, which any verb takes.

    Beside the directory lie its settings (`.yaml`), what its process said (`.txt`), and that process' number (`.pid`).
    """

    number: int
    run: Path
    loaded: Loaded
    cwd: Path = field(default_factory=Path.cwd)  # where the paths in the settings begin

    @property
    def config(self) -> Config:
        """The settings without places, which would be the same for all trials."""
        output = {"output_dir": None, "name": None, "save_as": None}
        config = self.loaded.config
        return config.model_copy(update={"output": config.output.model_copy(update=output)})

    def beside(self, suffix: str) -> Path:
        return self.run.with_name(self.run.name + suffix)


@dataclass(frozen=True)
class Slot:
    """Room for one trial at a time: a device (None: the one in the settings) and CPU threads (None: torch's number)."""

    device: str | None = None
    threads: int | None = None


Decision = Literal["go on", "pause", "stop"]
# Asked once for each validation of a trial, with all its rows of val up to there (step 0 too). It is asked again about
# all of them when a trial goes on, so the answer must follow from the rows alone, or from what was learned since.
Judge = Callable[[Trial, list[Row]], Decision]

State = Literal["finished", "paused", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, or was left: one that was paused or stopped goes on, to the bit, when it is run again.

    `rows` are the run's validations, `seconds` the wall time of the processes of this call, `reason` why it failed.
    `was_killed`: by a signal from outside, and its run can go on here from its last checkpoint.
    """

    trial: Trial
    state: State
    rows: list[Row]
    seconds: float = 0.0
    reason: str = ""
    was_killed: bool = False

    @property
    def step(self) -> int:
        """The last one that was validated."""
        return max((row["step"] for row in self.rows), default=0)

    def best(self, metric: str) -> tuple[float, int] | None:
        """The value and the step that the run itself has marked as its best; None before it has one."""
        step = Run(self.trial.run).pointer(layout.BEST) if layout.is_run(self.trial.run) else None
        row = next((row for row in self.rows if row["step"] == step), {})
        return None if row.get(metric) is None else (row[metric], row["step"])


def validations(run: Path) -> list[Row]:
    """The run's own rows of val, one per step; of several tasks those that count for all."""
    return Side(str(run), Run(run)).validations()


def metric_of(run: Path) -> str:
    """The metric that chooses a run's best step: what trials are compared by, too."""
    return str(Run(run).resolved["select_by"])


def is_finished(run: Path) -> bool:
    return layout.is_run(run) and Run(run).status.get("state") == "finished"
