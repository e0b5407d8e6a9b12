"""Where a run stands: the one mutable record of the loop, saved whole in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from warmstart.engine.schedule import Plateau
from warmstart.errors import UserError
from warmstart.inference.memory import AtOnce

OUT_OF_TIME = "the time budget is used up"  # a stop reason


class NotFinite(UserError):
    """A step, counted from 1, whose loss, gradient or result is NaN or infinite. What it did must be undone."""

    def __init__(self, step: int, what: str, fix: str) -> None:
        super().__init__(f"{what} not finite in step {step}", "finite numbers", fix)
        self.step = step


@dataclass
class TrainState:
    """`step` counts optimizer steps done, `window` those of the current epoch; sums are since the last row."""

    step: int = 0
    epoch: int = 0
    window: int = 0
    best_value: float | None = None
    best_step: int | None = None
    num_bad: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    seconds: float = 0.0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    epoch_loss_sum: float = 0.0
    epoch_weight_sum: float = 0.0
    taught_sums: list[float] = field(default_factory=list)  # of the lessons, in their order
    frozen_stage: int | None = None
    frozen_hash: str | None = None
    stop_reason: str | None = None
    num_recoveries: int = 0  # a new best after at least one validation that was none
    good_step: int = 0  # of the last checkpoint that the run's pace asked for: where a rescue goes back to
    failed_steps: list[int] = field(default_factory=list)  # counted from 1, one entry per rescue
    rescue_factor: float = 1.0  # of every rate
    stage: int = 0  # of --unfreeze
    stage_step: int = 0  # at which it began
    stage_plateau: Plateau = field(default_factory=Plateau)  # its validations without a lower val loss
    trained_at_once: AtOnce = field(default_factory=AtOnce)
    evaluated_at_once: AtOnce = field(default_factory=AtOnce)
    computed_at_once: AtOnce = field(default_factory=AtOnce)  # features
    num_skipped: int = 0  # steps in a row that fp16's scaler has left out up to here
    # Training images that were lost on the way, and why.
    unreadable: dict[str, str] = field(default_factory=dict)
    threshold: float | None = None  # chosen on val for the weights of this very step

    @property
    def is_left_out(self) -> bool:
        """Whether the step to come has failed twice, so that its batch is passed over."""
        return self.failed_steps.count(self.step + 1) > 1

    def advance(self, steps_per_epoch: int) -> None:
        """Count one optimizer step; the last one of an epoch opens the next."""
        self.step += 1
        self.threshold = None
        self.epoch, self.window = divmod(self.step, steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("plateau", "stage_plateau"):
            values[name]["best"] = str(values[name]["best"])  # JSON has no infinity
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        plateaus: dict[str, Any] = {
            name: Plateau(**{**values[name], "best": float(values[name]["best"])})
            for name in ("plateau", "stage_plateau")
            if name in values  # checkpoints of earlier versions have fewer
        }
        at_once: dict[str, Any] = {
            name: AtOnce(**values[name])
            for name in ("trained_at_once", "evaluated_at_once", "computed_at_once")
            if name in values  # checkpoints of earlier versions have none
        }
        older = {"taught_sums": [values["taught_sum"]]} if "taught_sum" in values else {}  # LwF's alone
        values = {name: value for name, value in values.items() if name != "taught_sum"}
        return cls(**{**values, **older, **at_once, **plateaus})

    def take(self, other: TrainState) -> None:
        """Become equal to another state: whoever holds this one goes on with it."""
        vars(self).update(vars(other))
