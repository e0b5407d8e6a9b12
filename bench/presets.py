"""The presets of document 000 on its own checkpoint: accuracy on the test split before and after, three seeds.

The images of fashion900's train and t10k files were cut from one picture and may be the checkpoint's
own training images, so this shows that the recipes run and what they change here; it says nothing
about generalisation.

    python bench/presets.py --data FASHION900 --weights mnist_cnn3.pt [--seeds 3]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import warmstart as ws
from warmstart import console
from warmstart.stats import spread

PRESETS = ("light", "deep", "head", "conservative", "stage-1", "stage-2")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for preset in PRESETS:
        starts, bests, steps = [], [], []
        for seed in range(args.seeds):
            # Stage 2 goes on from stage 1 of the same seed.
            weights = str(root / f"stage-1-{seed}") if preset == "stage-2" else args.weights
            folder = root / f"{preset}-{seed}"
            with console.quiet():
                result = ws.finetune(weights, args.data, preset=preset, seed=seed, output_dir=str(folder))
            gain = next(gain for gain in result.gains if gain.split == "test")
            starts.append(gain.start["accuracy"])
            bests.append(gain.best["accuracy"])
            steps.append(ws.show(str(folder))["best"]["step"])
        before, after = spread(starts), spread(bests)
        print(
            f"{preset:<13} test accuracy {before[0]:.4f} -> {after[0]:.4f} +- {after[1]:.4f} "
            f"({args.seeds} seeds; best steps {steps})",
            flush=True,
        )


if __name__ == "__main__":
    main()
