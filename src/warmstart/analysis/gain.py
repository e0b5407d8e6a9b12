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
from warmstart.run import layout, reader
from warmstart.stats import bootstrap_interval


@dataclass(frozen=True)
class Gain:
    """One split: metrics of the start model (step 0) and of the best one, and the paired difference in accuracy.

    `low` and `high` bound the difference in 95 % of bootstrap resamples of the samples.
    """

    split: str
    num_samples: int
    start: dict[str, float]
    best: dict[str, float]
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better than the start"
        if self.high < 0:
            return "worse than the start"
        return f"cannot be told from the start with {self.num_samples} samples"

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
            gains.append(_pair(result, read_predictions(path), start))
    assert result is not None, "a run has at least a train split"
    return gains, result


def _pair(result: Evaluation, start: Predictions, start_metrics: dict[str, float]) -> Gain:
    if result.ids != start.ids:
        raise UserError(
            f"the {result.split} samples have changed since the run was started",
            "the same images at the start and at the end",
            "leave the data alone while a run is under way",
        )
    before = (start.scores.argmax(axis=1) == start.targets).astype(np.float64)
    after = (result.outputs.argmax(axis=1) == result.targets).astype(np.float64)
    low, high = bootstrap_interval(after - before)
    return Gain(
        result.split,
        result.num_samples,
        start_metrics,
        result.metrics,
        float((after - before).mean()),
        low,
        high,
    )
