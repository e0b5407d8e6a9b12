"""Does starting from trained weights pay? Fine-tuning against random initialisation, at equal steps.

Real photographs (class folders train/val/test with cat and dog), 64 px, weights of the last step,
val + test together, three seeds. Prints one row per run, the paired difference per seed, and its
bootstrap interval over seeds and samples.

    python bench/from_scratch.py --data DOGCAT --weights WEIGHTS.safetensors [--epochs 10] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

import warmstart as ws
from warmstart import console
from warmstart.stats import bootstrap_interval, spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="timm:mobilenetv3_small_100")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", help="folder for the run directories [default: temporary]")
    args = parser.parse_args()
    root = Path(args.out or tempfile.mkdtemp())
    correct: dict[str, list[np.ndarray]] = {"pretrained": [], "random": []}
    for seed in range(args.seeds):
        for side, weights in (("pretrained", args.weights), ("random", "none")):
            correct[side].append(one_run(args, root / f"{side}-{seed}", weights, seed))
            print(
                json.dumps(
                    {"side": side, "seed": seed, "accuracy": round(float(correct[side][-1].mean()), 4)}
                )
            )
    report(correct)


def one_run(args: argparse.Namespace, folder: Path, weights: str, seed: int) -> np.ndarray:
    """1.0 for each image of val + test that the weights of the last step classify correctly."""
    with console.quiet():
        ws.finetune(data=args.data, **settings(args, folder, weights, seed))
        result = ws.evaluate(f"{folder}@last", split="val,test")
    return (result.outputs.argmax(axis=1) == result.targets).astype(float)


def settings(args: argparse.Namespace, folder: Path, weights: str, seed: int) -> dict[str, object]:
    """The same for both sides, but for the weights; the statistics of the trained weights are given to both."""
    return {
        "model": args.model,
        "weights": weights,
        "output_dir": str(folder),
        "image_size": 64,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "epochs": args.epochs,
        "batch_size": 32,
        "lr": 1e-3,
        "warmup": ".1",
        "flip": 0.5,
        "seed": seed,
        "eval_every": f"{args.epochs}epochs",
    }


def report(correct: dict[str, list[np.ndarray]]) -> None:
    for side, runs in correct.items():
        mean, deviation = spread([float(run.mean()) for run in runs])
        print(f"{side:<12} {mean:.4f} +- {deviation:.4f} over {len(runs)} seeds, {len(runs[0])} images")
    differences = np.stack(correct["pretrained"]) - np.stack(correct["random"])
    low, high = interval(differences)
    print(
        f"difference   {differences.mean():+.4f}, 95 % interval over seeds and images {low:+.4f} to {high:+.4f}"
    )
    print("per seed     " + " ".join(f"{row.mean():+.4f} {bootstrap_interval(row)}" for row in differences))


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Bootstrap over both axes (seeds, images) of the paired differences."""
    generator = np.random.default_rng(0)
    num_seeds, num_images = differences.shape
    means = [
        differences[generator.integers(num_seeds, size=num_seeds)][
            :, generator.integers(num_images, size=num_images)
        ].mean()
        for _ in range(2000)
    ]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


if __name__ == "__main__":
    main()
