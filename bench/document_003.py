"""Document 003's example B with other weights: what its rate of .1 does to weights that are trained already.

The preset mobilenetv2-cifar10 with timm:mobilenetv3_small_100, at 64 px, from weights that were trained on CIFAR-10's
50,000 training images (torchvision's could not be fetched), and from random ones. The data are its 10,000 test images,
which those weights never saw: 4,000 to train, 2,000 val, 2,000 test; 3 epochs for the preset's 20. As the weights know
the classes, this says what the steps do, and nothing about how well ImageNet's weights transfer.

Interrupted (Ctrl-C, or `timeout`), it goes on where it was when it is started again with the same --out.

    python bench/document_003.py --data cifar10-test.parquet --weights mobilenetv3_small_100.safetensors --out FOLDER
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from runs import finish

import warmstart as ws
from warmstart.run.reader import Run
from warmstart.stats import spread

SIDES = {  # name -> folder, what differs from the preset
    "trained weights, the preset's .01": ("trained-0.01", {}),
    "trained weights, .001": ("trained-0.001", {"lr": 0.001}),
    "trained weights, the article's .1": ("trained-0.1", {"lr": 0.1}),
    "random weights, .1": ("random-0.1", {"lr": 0.1, "weights": "none"}),
}
HEAD = "| start, rate | " + " | ".join(("start", "epoch 1", "epoch 2", "epoch 3")) + " | best step by seed |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = [HEAD, "|---" * 6 + "|"]
    for name, (folder, changed) in SIDES.items():
        runs = [one(args, f"{folder}-{seed}", {**changed, "seed": seed}) for seed in range(args.seeds)]
        curves = [accuracies(run) for run in runs]
        cells = ["{:.3f} +- {:.3f}".format(*spread(list(values))) for values in zip(*curves, strict=True)]
        steps = ", ".join(str(ws.show(str(run.path))["best"]["step"]) for run in runs)
        rows.append(f"| {name} | {' | '.join(cells)} | {steps} |")
    print("\n".join(rows))


def one(args: argparse.Namespace, name: str, changed: dict[str, object]) -> Run:
    folder = Path(args.out) / name
    settings = {
        "preset": "mobilenetv2-cifar10",
        "model": "timm:mobilenetv3_small_100",
        "weights": args.weights,
        "image_size": "64x64",
        "train_ratio": 0.6,
        "val_ratio": 0.2,
        "limit": 4000,
        "epochs": 3,
    }
    return finish(folder, partial(ws.finetune, data=args.data, **{**settings, **changed}))


def accuracies(run: Run) -> list[float]:
    """On val, at the start and after each epoch."""
    found = {row["step"]: row["accuracy"] for row in run.evals.rows if row.get("split") == "val"}
    return [found[step] for step in sorted(found)]


if __name__ == "__main__":
    main()
