"""analysis.png: the curves of a run, drawn from its rows after the loop."""

from __future__ import annotations

from pathlib import Path

from warmstart.run import layout, reader


def draw_curves(run_path: Path) -> Path:
    from warmstart.analysis.plots import plot_training

    run = reader.open_run(run_path)
    train_rows = [row for row in run.metrics.rows if row.get("kind") == "train"]
    # Of several tasks, those of all together.
    eval_rows = [row for row in run.evals.rows if row.get("kind") != "evaluate" and "task" not in row]
    target = run_path / layout.CURVES
    plot_training(train_rows, eval_rows, target, run.resolved["select_by"], run.pointer(layout.BEST))
    return target
