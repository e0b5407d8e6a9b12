"""What `finetune` and `resume` give back: records with `to_json()` (what `--json` prints) and `text()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.run import layout
from warmstart.shown import Shown

if TYPE_CHECKING:
    from warmstart.analysis.gain import Gain


@dataclass(frozen=True)
class FinetuneResult(Shown):
    """A finished run: `metrics` are of its best checkpoint on test (else val)."""

    run: str
    metrics: dict[str, float]
    num_samples: int
    split: str
    gains: list[Gain]

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "metrics": self.metrics,
            "num_samples": self.num_samples,
            "split": self.split,
            "gains": [gain.to_json() for gain in self.gains],
        }

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.run) / layout.CURVES]

    def text(self) -> str:
        rows = [
            (gain.split, name, gain.start.get(name), gain.best.get(name))
            for gain in self.gains
            for name in ("accuracy", "map", "f1", "f1_micro", "exact_match", "loss", "ece")
            if name in gain.best
        ]
        lines = [console.table("", ("split", "metric", "start", "best"), rows, left=2), ""]
        lines += [gain.text() for gain in self.gains]
        lines += ["", f"run: {self.run}", f"look: warmstart show {self.run}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class DryRunResult(Shown):
    """What a run would do and cost; nothing was written."""

    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.record

    def text(self) -> str:
        return "dry run: nothing was written"
