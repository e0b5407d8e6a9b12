"""What a run changed: its best checkpoint against the model it started from, on the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.evaluate import Evaluation, evaluate
from warmstart.errors import UserError
from warmstart.inference.predictions import Predictions, read_predictions
from warmstart.inference.restore import restore
from warmstart.records import finite
from warmstart.run import layout, reader, writer
from warmstart.stats import bootstrap_interval, mcnemar_p

_LEVEL = 0.05


@dataclass(frozen=True)
class Gain:
    """One split: metrics of the start model (step 0) and of the best one, and the paired difference in accuracy.

    `low` and `high` bound the difference in 95 % of bootstrap resamples of the samples; `p` is exact
    McNemar's over the samples that were fixed (wrong before, right now) and broken.
    """

    split: str
    num_samples: int
    start: dict[str, float]
    best: dict[str, float]
    best_step: int
    difference: float
    low: float
    high: float
    fixed: int
    broken: int
    p: float

    @property
    def verdict(self) -> str:
        """Better or worse only if the interval and the exact test agree; few changed answers prove little."""
        if self.best_step == 0:
            return "nothing better than the start was found, so the start was kept"
        chosen = (
            " (the best step was chosen on these samples, so this is too kind)" if self.split == "val" else ""
        )
        if self.p < _LEVEL and self.low > 0:
            return f"better than the start{chosen}"
        if self.p < _LEVEL and self.high < 0:
            return f"worse than the start{chosen}"
        return f"cannot be told from the start with {self.num_samples} samples"

    def text(self) -> str:
        return (
            f"{self.split}: {self.verdict}: accuracy {self.difference:+.4f} "
            f"(95 % paired interval {self.low:+.4f} to {self.high:+.4f}; {self.fixed} fixed, {self.broken} broken, "
            f"McNemar p {self.p:.2g})"
        )

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "verdict": self.verdict}


def measure_gains(run_path: Path, device: Any, workers: int) -> tuple[list[Gain], Evaluation]:
    """Evaluate the best checkpoint on val and test and pair it with the predictions of step 0.

    Returns the gains and the last evaluation (test where there is one): the run's result.
    """
    run = reader.open_run(run_path)
    restored = restore(str(run_path), device)
    start_rows = {row["split"]: row for row in run.evals.rows if row["step"] == 0}
    gains: list[Gain] = []
    splits = [name for name in ("val", "test") if name in start_rows] or ["train"]
    result: Evaluation | None = None
    for split in splits:
        result = evaluate(restored, split=split, workers=workers)
        path = run.path / layout.PREDICTIONS / layout.predictions_name(split, 0)
        if path.exists():
            start = {name: start_rows[split][name] for name in result.metrics}
            gains.append(_pair(result, restored.reference.step or 0, read_predictions(path), start))
    assert result is not None, "a run has at least a train split"
    writer.write_json(run.path / layout.GAINS, finite([gain.to_json() for gain in gains]))
    return gains, result


def _pair(result: Evaluation, best_step: int, start: Predictions, start_metrics: dict[str, float]) -> Gain:
    if result.ids != start.ids:
        raise UserError(
            f"the {result.split} samples have changed since the run was started",
            "the same images at the start and at the end",
            "leave the data alone while a run is under way",
        )
    before = start.scores.argmax(axis=1) == start.targets
    after = result.outputs.argmax(axis=1) == result.targets
    difference = after.astype(np.float64) - before
    low, high = bootstrap_interval(difference)
    fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
    return Gain(
        split=result.split,
        num_samples=result.num_samples,
        start=start_metrics,
        best=result.metrics,
        best_step=best_step,
        difference=float(difference.mean()),
        low=low,
        high=high,
        fixed=fixed,
        broken=broken,
        p=mcnemar_p(fixed, broken),
    )
