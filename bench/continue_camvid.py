"""Document 002's story on CamVid: a run that is overfitted on purpose, and its continuation with other settings.

The parent trains builtin:microsegformer at 96x128 from nothing: no augmentation, no dropout, a constant rate of
8e-4. The child is document 002's `--reset_optimizer`: `continue --keep weights` with dropout .20, half the rate,
twice the decay, patience 30. Asked is its own test (2.20): better than the parent, gap < .03, more than 5 recovery
events. The gap is F-score on training images less that on val, at the best step.

Interrupted (Ctrl-C, or `timeout`), it goes on where it was when it is started again with the same --out.

    python bench/continue_camvid.py --data CAMVID --out FOLDER [--epochs 36] [--more 24] [--seeds 2]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from runs import finish

import warmstart as ws
from warmstart.run.lineage import compare_with_parent
from warmstart.run.reader import Run

METRIC = "fscore"
HEAD = (
    "| seed | run | best val F | at epoch | train F there | gap | last val F | last gap | recovery events |"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--more", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    rows, verdicts = [], []
    for seed in range(args.seeds):
        folders = [Path(args.out) / f"{name}-{seed}" for name in ("parent", "child")]
        settings = first(args, seed)
        parent = finish(folders[0], partial(ws.finetune, data=args.data, **settings))
        child = finish(folders[1], partial(ws.continue_run, str(folders[0]), **second(args)))
        rows += [row(seed, "parent", parent), row(seed, "child", child)]
        verdicts.append(f"seed {seed}: {verdict(child)}")
    print("\n".join([HEAD, "|---" * 9 + "|", *rows, "", *verdicts]))


def first(args: argparse.Namespace, seed: int) -> dict[str, object]:
    return {
        "model": "builtin:microsegformer",
        "weights": "none",
        "ignore": 11,
        "image_size": "96x128",
        "batch_size": 8,
        "augment": "none",
        "dropout": 0.0,
        "dice_weight": 1.5,
        "lr": 8e-4,
        "weight_decay": 1e-4,
        "scheduler": "none",
        "epochs": args.epochs,
        "select_by": METRIC,
        "seed": seed,
    }


def second(args: argparse.Namespace) -> dict[str, object]:
    changed = {"dropout": 0.2, "lr": 4e-4, "weight_decay": 2e-4, "patience": 30}
    return {"keep": "weights", "epochs": args.more, **changed}


def row(seed: int, name: str, run: Run) -> str:
    val, train = curve(run, "val"), curve(run, "train")
    best, last = max((step for step in val if step), key=lambda step: val[step]), max(val)
    per_epoch = run.resolved["pace"]["steps_per_epoch"]
    cells = [str(seed), name, f"{val[best]:.4f}", f"{best / per_epoch:g} of {last / per_epoch:g}"]
    cells += [f"{train[best]:.4f}", f"{train[best] - val[best]:+.4f}"]
    cells += [f"{val[last]:.4f}", f"{train[last] - val[last]:+.4f}", str(run.status["recovery_events"])]
    return f"| {' | '.join(cells)} |"


def curve(run: Run, split: str) -> dict[int, float]:
    """Step -> F-score."""
    rows = [row for row in run.evals.rows if row.get("split") == split and row.get("kind") != "evaluate"]
    return {row["step"]: row[METRIC] for row in rows}


def verdict(child: Run) -> str:
    """Document 002's three conditions, and what test says, which chose nothing."""
    val, train, found = curve(child, "val"), curve(child, "train"), compare_with_parent(child)
    assert found is not None, "a child with val"
    events = child.status["recovery_events"]
    conditions = {
        found.text(): found.improved,
        f"gap {train[found.step] - val[found.step]:+.4f} < .03": train[found.step] - val[found.step] < 0.03,
        f"recovery events {events} > 5": events > 5,
    }
    lines = [f"{text}: {'yes' if is_met else 'no'}" for text, is_met in conditions.items()]
    lines += [f"{gain['split']}: {gain['verdict']}: {gain['change']}" for gain in child.gains]
    return "\n  ".join(lines)


if __name__ == "__main__":
    main()
