"""What a training on episodes changed: the best step against the start, on the same episodes of held-out classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.analysis.gain import Gain
from warmstart.inference.predictions import read_predictions
from warmstart.records import finite
from warmstart.run import layout, reader, writer
from warmstart.stats import mcnemar_p, mean_interval


@dataclass(frozen=True)
class EpisodeGain(Gain):
    """One split; `num_samples` are episodes, `fixed` and `broken` those with more and with fewer right answers."""

    @property
    def change(self) -> str:
        return (
            f"accuracy over {self.num_samples} episodes {self.start['accuracy']:.4f} -> {self.best['accuracy']:.4f} "
            f"[{self.best['accuracy_low']:.4f}, {self.best['accuracy_high']:.4f}], {self.difference:+.4f} (95 % paired "
            f"interval {self.low:+.4f} to {self.high:+.4f}; {self.fixed} episodes better, {self.broken} worse, "
            f"sign test p {self.p:.2g})"
        )


def episode_gains(run_path: Path) -> list[EpisodeGain]:
    """The test of the best step beside that of the start, written to gains.json; both were measured by the run."""
    run = reader.open_run(run_path)
    first, best = run.resolved["pace"].get("first_step", 0), reader.model_file(str(run_path))[1]
    assert best is not None, "a run has a best or a last step"
    before, after = (_accuracies(run, step) for step in (first, best))
    difference = after - before
    low, high = mean_interval(difference)
    more, fewer = int((difference > 0).sum()), int((difference < 0).sum())
    start, end = (_row(run, step) for step in (first, best))
    gain = EpisodeGain(
        metric="accuracy",
        difference=float(difference.mean()),
        low=low,
        high=high,
        fixed=more,
        broken=fewer,
        p=mcnemar_p(more, fewer),
        split="test",
        num_samples=len(after),
        start=start,
        best=end,
        best_step=best,
        start_step=first,
    )
    writer.write_json(run.path / layout.GAINS, finite([gain.to_json()]))
    return [gain]


def _accuracies(run: reader.Run, step: int) -> np.ndarray:
    """(E,): of the test's episodes."""
    path = run.path / layout.PREDICTIONS / layout.predictions_name("test", step)
    return read_predictions(path).scores[:, 0].astype(np.float64)


def _row(run: reader.Run, step: int) -> dict[str, Any]:
    rows = [row for row in run.evals.rows if row["split"] == "test" and row["step"] == step]
    return {
        name: rows[-1][name] for name in ("loss", "accuracy", "accuracy_low", "accuracy_high", "episodes")
    }
