"""Where a run stands: the one mutable record of the loop, saved whole in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from warmstart.engine.schedule import Plateau


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
    frozen_stage: int | None = None
    frozen_hash: str | None = None
    stop_reason: str | None = None

    def advance(self, steps_per_epoch: int) -> None:
        """Count one optimizer step; the last one of an epoch opens the next."""
        self.step += 1
        self.epoch, self.window = divmod(self.step, steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["plateau"]["best"] = str(self.plateau.best)  # JSON has no infinity
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        saved = values["plateau"]
        plateau = Plateau(saved["factor"], float(saved["best"]), saved["num_bad"])
        return cls(**{**values, "plateau": plateau})
