"""Document 004's comparison (its table of zero-shot, LoRA and full tuning), where everybody can repeat it.

A CLIP that was pre-trained for seconds (tiny_clip.py) meets coloured shapes whose pairs of colour and shape it never
saw. Every method starts from the same weights, has the same images and epochs and a rate of its own, and is measured on
test at its best step on val; one pre-training per seed.

    python bench/clip_shapes.py --out FOLDER [--seeds 3] [--train 16] [--epochs 10]

Writes TABLE.md and LOG.jsonl to FOLDER, and says in how many seeds the document's order holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tiny_clip import write_clip, write_folders

import warmstart as ws
from warmstart import console
from warmstart.run.reader import Run
from warmstart.stats import spread

# Rates by a search on another seed: --first-seed 10 --seeds 1 --lr 3e-4,1e-3,3e-3,1e-2,3e-2,1e-1
METHODS: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "linear probe": {"text.head": "linear", "freeze": "backbone", "lr": 1e-1},
    "text rows, head alone": {"text.head": "zero-shot", "freeze": "backbone", "lr": 1e-1},
    "LoRA": {"text.head": "zero-shot", "lora.rank": 8, "lr": 3e-2},
    "full": {"text.head": "zero-shot", "lr": 1e-3},
    "contrastive": {"text.head": "contrastive", "lr": 1e-3},
}
COMMON = {"batch_size": 32, "augment": "none", "warmup": ".1", "tensorboard": False, "device": "cpu"}
ORDER = ("zero-shot", "LoRA", "full")  # the document's: 60, 85, 88-90 % top-1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=16, help="training images of each class")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", help="rates for all methods, for a search: 1e-3,3e-3")
    args = parser.parse_args()
    rows = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        place = args.out / f"seed-{seed}"
        clip = write_clip(place / "clip", seed)
        data = write_folders(place / "data", {"train": args.train, "val": 20, "test": 100}, seed)
        for name, settings in methods(args.lr).items():
            found = measure(name, settings, clip, data, place, args, seed)
            rows.append({"method": name, "seed": seed, **found})
            print(json.dumps(rows[-1]), flush=True)
    (args.out / "LOG.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (args.out / "TABLE.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def methods(rates: str | None) -> dict[str, dict[str, Any]]:
    """All of them, or each that has a rate at each of the rates."""
    if rates is None:
        return METHODS
    return {
        f"{name} {rate}": {**given, "lr": float(rate)}
        for name, given in METHODS.items()
        for rate in rates.split(",")
        if given
    }


def measure(
    name: str, given: dict[str, Any], clip: Path, data: Path, place: Path, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Top-1 and top-5 on test, the share of parameters that train, and seconds of training."""
    start = time.perf_counter()
    with console.quiet():
        if not given:
            found = ws.evaluate(f"hf:{clip}", str(data), zero_shot=True)
            return {**quality(found), "share": 0.0, "seconds": 0.0}
        folder = place / name.replace(" ", "-").replace(",", "")
        settings = {**COMMON, **given, "epochs": args.epochs, "seed": seed, "output_dir": str(folder)}
        ws.finetune(f"hf:{clip}", str(data), **settings)
        seconds = time.perf_counter() - start
        found = ws.evaluate(str(folder), split="test")
    plan = Run(folder).plan["rows"]
    trained = sum(row["num_trainable"] for row in plan)
    total = sum(row["num_parameters"] for row in plan)
    return {**quality(found), "share": round(trained / total, 4), "seconds": round(seconds, 1)}


def quality(found: Any) -> dict[str, float]:
    return {name: round(found.metrics[key], 4) for name, key in (("top1", "accuracy"), ("top5", "top5"))}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | top-1 | top-5 | trained | seconds |", "|---|---|---|---|---|"]
    names = dict.fromkeys(row["method"] for row in rows)
    by_name = {name: [row for row in rows if row["method"] == name] for name in names}
    for name, own in by_name.items():
        top1, top5 = (
            "{:.3f} ± {:.3f}".format(*spread([row[key] for row in own])) for key in ("top1", "top5")
        )
        seconds = sum(row["seconds"] for row in own) / len(own)
        lines.append(f"| {name} | {top1} | {top5} | {own[0]['share']:.1%} | {seconds:.1f} |")
    if not set(ORDER) <= set(by_name):  # a search
        return "\n".join(lines) + "\n"
    order, seeds = list(ORDER), {row["seed"] for row in rows}
    holds = sum(
        sorted(order, key=lambda name: next(r["top1"] for r in by_name[name] if r["seed"] == seed)) == order
        for seed in seeds
    )
    return "\n".join(lines) + f"\n\n{' < '.join(order)} holds in {holds} of {len(seeds)} seeds.\n"


if __name__ == "__main__":
    main()
