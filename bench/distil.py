"""Does a student learn more with a teacher, and what does a teacher cost? CIFAR-10, the same student with and without.

10,000 training images (1,000 of each class, drawn by a fixed seed), 1,000 others for val, the whole test; 64 px. The
teacher is `--teacher`, a file of weights that saw all 50,000 training images, val's too: val only chooses nothing here,
the weights of the last step are measured on test. Every row has the same student, steps and rate; pairs are by seed.

For speed, steps without a teacher and with kept answers (two fixed views) take turns in one process; the answers to a
view are computed in its first step, whose time is told beside it.

Interrupted, it goes on where it was when it is started again with the same --out; --runs N ends it after N trainings.

    python bench/distil.py --cifar CIFAR10 --teacher W.safetensors --out FOLDER [--seeds 3] [--runs N]
"""

from __future__ import annotations

import argparse
import io as streams
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from runs import finish, is_done

import warmstart as ws
from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.config import io
from warmstart.engine.clock import Clock
from warmstart.engine.feed import Feed
from warmstart.engine.lessons.lessons import make_lessons
from warmstart.engine.optimizer import make_optimizer
from warmstart.engine.prepare import prepare
from warmstart.engine.state import TrainState
from warmstart.engine.step import Arithmetic, train_window
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
SIDES = ("plain", "kept answers")
PAIRS = 150


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
    except Enough:
        return
    speeds = speed(args, data)
    (out / "LOG.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*records, *speeds]), encoding="utf-8"
    )
    text = "\n".join([*([table(records)] if records else []), speed_table(speeds)])
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
                    image = Image.open(streams.BytesIO(content["image"][row]["bytes"]))
                    image.save(place / f"{row:05d}.png")
    temporary.rename(folder)
    return folder


def within(left: list[int], folder: Path, settings: dict[str, Any]) -> Run:
    """The run in `folder`: begun, gone on with, or as it was. Raises Enough where no training is left."""
    if not is_done(folder):
        if not left[0]:
            raise Enough
        left[0] -= 1
    return finish(folder, partial(ws.finetune, **settings))


def trained(args: argparse.Namespace, data: Path, name: str, seed: int, left: list[int]) -> dict[str, Any]:
    given = {} if name == PLAIN else {"teacher": args.teacher}
    settings = {**COMMON, "model": args.student, "data": str(data), "epochs": args.epochs, "seed": seed}
    number = list(METHODS).index(name)
    run = within(left, Path(args.out) / f"{number}-{seed}", {**settings, **given, **METHODS[name]})
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


def speed(args: argparse.Namespace, data: Path) -> list[dict[str, Any]]:
    """Seconds of the steps of both sides, which take turns: whatever else the machine does is met by both."""
    settings = {**COMMON, "model": args.student, "data": str(data), "epochs": args.epochs}
    given = ({}, {"teacher": args.teacher, "views": 2})
    sides = {side: steps({**settings, **more}) for side, more in zip(SIDES, given, strict=True)}
    once = {}
    for side, taken in sides.items():
        begun = time.perf_counter()
        next(taken)  # with the answers to the whole view
        once[side] = time.perf_counter() - begun
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(PAIRS):
        for side in order(number):
            begun = time.perf_counter()
            next(sides[side])
            seconds[side].append(time.perf_counter() - begun)
    return [{"side": side, "first": once[side], "seconds": seconds[side]} for side in SIDES]


def steps(settings: dict[str, Any]) -> Iterator[None]:
    """The steps of a run, one at a time, with the loading of its images."""
    loaded = io.load(settings)
    job = prepare(loaded.config, loaded.origins, Path("nowhere")).job
    module, feed = job.built.module, Feed(job, Clock(), TrainState())
    optimizer = make_optimizer(job.config.optim, apply_stage(module, job.plan, 0), job.device)
    lessons = make_lessons(job, module, feed.part, 0, None)
    arithmetic = Arithmetic(clip=job.config.optim.clip, lessons=lessons)
    for epoch in count():
        windows = job.windows(epoch)
        batches = feed.training(windows, epoch)
        set_modes(module, job.plan, job.built.blocks, 0)
        for window in windows:
            taken = islice(batches, len(window))
            train_window(module, taken, feed.inputs, job.task.objective, optimizer, arithmetic)
            yield


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
    lines = ["| | images/s, median step | first step, s |", "|---|---|---|"]
    for row in speeds:
        rate = COMMON["batch_size"] / median(row["seconds"])
        lines.append(f"| {row['side']} | {rate:.0f} | {row['first']:.1f} |")
    plain, kept = (row["seconds"] for row in speeds)
    shares = sorted(one / other for one, other in zip(plain, kept, strict=True))
    low, high = shares[len(shares) // 4], shares[3 * len(shares) // 4]
    lines.append(
        f"| kept / plain, by pairs of steps | {median(shares):.3f} (quartiles {low:.3f}, {high:.3f}) | |"
    )
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    if not values:  # no pair yet
        return "-"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
