"""Does a student learn more with a teacher, and what does a teacher cost? CIFAR-10, the same student with and without.

10,000 training images (1,000 of each class, drawn by a fixed seed), 1,000 others for val, the whole test; 64 px. The
teacher is `--teacher`, a file of weights that saw all 50,000 training images, val's too: val only chooses nothing here,
the weights of the last step are measured on test. Every row has the same student, steps and rate; pairs are by seed.

`speed` alternates short runs without and with kept answers (two fixed views on both sides) and compares the images per
second of their steps; the answers themselves are computed once, which is told beside it.

Interrupted, it goes on where it was when it is started again with the same --out; --runs N ends it after N trainings.

    python bench/distil.py --cifar CIFAR10 --teacher W.safetensors --out FOLDER [--seeds 3] [--runs N]
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import warmstart as ws
from warmstart.run import layout
from warmstart.run.reader import Run

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 1000, "val": 100}
COMMON: dict[str, Any] = {
    "weights": "none",
    "image_size": "64",
    "batch_size": 64,
    "lr": 3e-3,
    "augment": "light",
    "flip": 0.5,
    "scheduler": "cosine",
    "tensorboard": False,
    "eval_every": "5epochs",
}
PLAIN = "without a teacher"
METHODS: dict[str, dict[str, Any]] = {  # what each adds; all but the first have the teacher
    PLAIN: {},
    "alpha .5": {},
    "alpha .7": {"distill.alpha": 0.7},
    "alpha .9": {"distill.alpha": 0.9},
    "alpha .5, temperature 2": {"distill.temperature": 2},
    "alpha .5, hints 1": {"distill.hints": 1.0},
    "alpha .5, 2 kept views": {"views": 2},
}
SIDES = {"plain": {}, "kept answers": {"views": 2}}
ROUNDS = 5


class Enough(Exception):
    """As many trainings as were asked for."""


def main() -> None:
    args = arguments()
    out = Path(args.out)
    data = write_data(Path(args.cifar), out / "data")
    left = [args.runs]
    try:
        records = [
            row
            for name in (METHODS if args.only is None else args.only)
            for seed in args.seed or range(args.seeds)
            if (row := trained(args, data, name, seed, left)) is not None
        ]
        speeds = [speed(args, data, number, side, left) for number in range(ROUNDS) for side in order(number)]
    except Enough:
        return
    (out / "LOG.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*records, *speeds]), encoding="utf-8"
    )
    text = table(records) + "\n" + speed_table(speeds)
    (out / "TABLE.md").write_text(text, encoding="utf-8")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", required=True, help="folder with cifar10-train.parquet and cifar10-test.parquet"
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="timm:test_resnet")
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, nargs="*", help="these alone, where processes share the work")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=METHODS)
    return parser.parse_args()


def order(number: int) -> list[str]:
    """Each round begins with the other side."""
    names = list(SIDES)
    return names[number % 2 :] + names[: number % 2]


def write_data(cifar: Path, folder: Path) -> Path:
    """Class folders: of the training images 1,000 of each class and 100 others, all of the test images."""
    if folder.exists():
        return folder
    temporary = folder.with_suffix(".tmp")
    for split in ("train", "test"):
        content = pq.read_table(cifar / f"cifar10-{split}.parquet").to_pydict()
        labels = np.array(content["label"])
        for number, name in enumerate(NAMES):
            rows = np.flatnonzero(labels == number)
            if split == "train":
                rows = np.random.default_rng(number).permutation(rows)
                first = PER_CLASS["train"]
                parts = {"train": rows[:first], "val": rows[first : first + PER_CLASS["val"]]}
            else:
                parts = {"test": rows}
            for part, members in parts.items():
                place = temporary / part / name
                place.mkdir(parents=True, exist_ok=True)
                for row in members.tolist():
                    image = Image.open(io.BytesIO(content["image"][row]["bytes"]))
                    image.save(place / f"{row:05d}.png")
    temporary.rename(folder)
    return folder


def finish(folder: Path, settings: dict[str, Any], left: list[int]) -> Run:
    """The run in `folder`: begun, gone on with, or as it was. Raises Enough where no training is left."""
    if layout.is_run(folder) and (folder / layout.CURVES).exists():
        return Run(folder)
    if not left[0]:
        raise Enough
    left[0] -= 1
    if not layout.is_run(folder):
        ws.finetune(**settings, output_dir=str(folder))
    else:
        ws.resume(str(folder))
    return Run(folder)


def trained(args: argparse.Namespace, data: Path, name: str, seed: int, left: list[int]) -> dict[str, Any]:
    given = {} if name == PLAIN else {"teacher": args.teacher}
    settings = {**COMMON, "model": args.student, "data": str(data), "epochs": args.epochs, "seed": seed}
    number = list(METHODS).index(name)
    run = finish(Path(args.out) / f"{number}-{seed}", {**settings, **given, **METHODS[name]}, left)
    kept = run.path / "test.json"
    if not kept.exists():
        measured = ws.evaluate(f"{run.path}@last", split="test").metrics
        kept.write_text(json.dumps(measured), encoding="utf-8")
    measured = json.loads(kept.read_text(encoding="utf-8"))
    return {
        "method": name,
        "seed": seed,
        "accuracy": measured["accuracy"],
        "loss": measured["loss"],
        "ece": measured["ece"],
        "seconds": run.status["seconds"],
    }


def speed(args: argparse.Namespace, data: Path, number: int, side: str, left: list[int]) -> dict[str, Any]:
    """The median images per second of the steps of a short run, the first rows left out."""
    given = {"teacher": args.teacher, **SIDES[side]} if side != "plain" else {}
    settings = {
        **COMMON,
        "model": args.student,
        "data": str(data),
        "limit": 2000,
        "epochs": 3,
        "seed": number,
    }
    folder = Path(args.out) / f"speed-{side.partition(' ')[0]}-{number}"
    run = finish(folder, {**settings, **given, "eval_every": "3epochs", "log_every": "4steps"}, left)
    rows = [row["images_per_s"] for row in run.metrics.rows if row["kind"] == "train"]
    spent = run.status["time"].get("features", 0.0)
    return {"side": side, "round": number, "images_per_s": median(rows[2:]), "answers_s": spent}


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds; gains are paired by seed."""
    plain = {row["seed"]: row for row in records if row["method"] == PLAIN}
    lines = ["| | test accuracy | gain, paired by seed | log loss | ECE | seconds |", "|---" * 6 + "|"]
    for name in dict.fromkeys(str(row["method"]) for row in records):
        own = [row for row in records if row["method"] == name]
        gains = [row["accuracy"] - plain[row["seed"]]["accuracy"] for row in own if row["seed"] in plain]
        cells = [spread([row["accuracy"] for row in own], 4), "-" if name == PLAIN else spread(gains, 4)]
        cells += [spread([row[key] for row in own], digits) for key, digits in (("loss", 3), ("ece", 3))]
        cells += [f"{mean(row['seconds'] for row in own):.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def speed_table(speeds: list[dict[str, Any]]) -> str:
    lines = ["| | images/s of the steps, median of rounds | answers, seconds once |", "|---|---|---|"]
    by_side = {side: [row for row in speeds if row["side"] == side] for side in SIDES}
    for side, rows in by_side.items():
        once = mean(row["answers_s"] for row in rows)
        lines.append(f"| {side} | {median(row['images_per_s'] for row in rows):.0f} | {once:.1f} |")
    pairs = zip(*by_side.values(), strict=True)
    ratios = [sorted((one, other), key=lambda row: row["side"] != "plain") for one, other in pairs]
    shares = [kept["images_per_s"] / plain["images_per_s"] for plain, kept in ratios]
    lines.append(f"| ratio by round | {median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f}) | |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
