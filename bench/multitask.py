"""Three tasks on one backbone against three single runs: CIFAR-10, MNIST and Fashion-MNIST, small parts of each.

All runs begin with the same weights and have the same settings; a task sees exactly the same number of images in the
joint run (proportional sampling) as in its own. Kinds of runs, by seed: `single` (one per task); `joint`;
`uncertainty` (weights learned); `moving` (as joint, but BatchNorm's statistics move: without --freeze-bn); `added`
(CIFAR-10 and MNIST together, then Fashion-MNIST is added with --retain) and `held` (the same with --retain.l2sp).

Finished runs are kept: started again with the same --out it does what is missing, for about --seconds at a time.

    python bench/multitask.py --data SHARED/data --weights FILE --out FOLDER [--seeds 3] [--kinds single,joint]
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from runs import finish, is_done

import warmstart as ws
from warmstart.run.reader import Run

SIZES = {"cifar": (3000, 500, 1000), "mnist": (3000, 500, 1000), "fashion": (500, 100, 300)}
KINDS = ("single", "joint", "uncertainty", "moving", "added", "held")
HEAD = "| kind | task | test accuracy, mean of seeds | spread | less the single run, by seed |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("data", "weights", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--kinds", default="single,joint,uncertainty,moving,added,held")
    args = parser.parse_args()
    data = write_data(Path(args.data), Path(args.out) / "data")
    began = time.monotonic()
    for seed in range(args.seeds):
        for kind in (kind for kind in KINDS if kind in args.kinds.split(",")):
            for folder, settings in runs(kind, seed, data, args):
                if time.monotonic() - began > args.seconds and not is_done(folder):
                    print(f"more is left: {folder.name}; start again")
                    return
                several = "tasks" in settings or "retain" in settings
                finish(folder, partial(ws.multitask if several else ws.finetune, **settings))
    report(args)


def runs(
    kind: str, seed: int, data: dict[str, Path], args: argparse.Namespace
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, settings) of each run of a kind."""
    own = {
        "weights": args.weights,
        "image_size": 64,
        "batch_size": 32,
        "epochs": args.epochs,
        "lr": 1e-3,
        "warmup": 0.1,
        "freeze_bn": kind != "moving",
        "augment": "light",
        "seed": seed,
        "device": "cpu",
        "tensorboard": False,
    }
    out = Path(args.out)
    joint = f"mnist={data['mnist']},fashion={data['fashion']}"
    if kind == "single":
        for name, place in data.items():
            yield out / f"single-{name}-{seed}", {**own, "data": str(place)}
    elif kind in ("joint", "uncertainty", "moving"):
        weights = {"tasks_weights": "uncertainty"} if kind == "uncertainty" else {}
        yield out / f"{kind}-{seed}", {**own, **weights, "data": str(data["cifar"]), "tasks": joint}
    else:
        pair, mnist = out / f"pair-{seed}", f"mnist={data['mnist']}"
        yield pair, {**own, "data": str(data["cifar"]), "tasks": mnist}
        held = {"retain_l2sp": 0.01} if kind == "held" else {}
        more = {
            "weights": str(pair),
            "retain": str(pair),
            "data": str(data["fashion"]),
            "tasks_first": "fashion",
        }
        yield out / f"{kind}-{seed}", {**own, **more, **held}


def report(args: argparse.Namespace) -> None:
    """The tables of what is there."""
    out, seeds = Path(args.out), range(args.seeds)
    single = {name: [accuracy(out / f"single-{name}-{seed}", None) for seed in seeds] for name in SIZES}
    print("\n".join([HEAD, "|---" * 5 + "|"]))
    for kind in ("single", "joint", "uncertainty", "moving"):
        for name in SIZES:
            found = single[name] if kind == "single" else [accuracy(out / f"{kind}-{s}", name) for s in seeds]
            if None in found:
                continue
            values = [float(value or 0) for value in found]
            spread = stdev(values) if len(values) > 1 else 0.0
            less = [value - float(own or 0) for value, own in zip(values, single[name], strict=True)]
            told = "-" if kind == "single" else ", ".join(f"{each:+.4f}" for each in less)
            print(f"| {kind} | {name} | {mean(values):.4f} | {spread:.4f} | {told} |")
    for kind in ("added", "held"):
        for seed in seeds:
            if is_done(out / f"{kind}-{seed}"):
                for gain in Run(out / f"{kind}-{seed}").gains:
                    if gain["split"] in ("retain", "test"):
                        print(f"{kind}, seed {seed}: {gain['split']} of {gain['task']}: {gain['verdict']}")


def accuracy(folder: Path, task: str | None) -> float | None:
    """Test accuracy of the best step."""
    if not is_done(folder):
        return None
    (gain,) = [g for g in Run(folder).gains if g["split"] == "test" and g.get("task") == task]
    return float(gain["best"]["accuracy"])


def write_data(source: Path, target: Path) -> dict[str, Path]:
    """Class folders train/val/test of each task, the same ones every time."""
    places = {name: target / name for name in SIZES}
    for name, place in places.items():
        if place.is_dir():
            continue
        images, labels = {"cifar": cifar, "mnist": mnist, "fashion": fashion}[name](source)
        order = np.random.default_rng(0).permutation(len(labels))
        making, start = place.with_name(f".{name}-{os.getpid()}"), 0
        for split, num in zip(("train", "val", "test"), SIZES[name], strict=True):
            for row in order[start : start + num].tolist():
                folder = making / split / str(labels[row])
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{row:05}.png"), images[row])
            start += num
        if place.is_dir():  # another process was faster
            shutil.rmtree(making)
        else:
            making.rename(place)
    return places


def cifar(source: Path) -> tuple[list[np.ndarray], list[str]]:
    """Of the test file, which the start weights have not seen."""
    table = pq.read_table(source / "cifar10" / "cifar10-test.parquet")
    content = [row["bytes"] for row in table["image"].to_pylist()]
    images = [cv2.cvtColor(np.asarray(Image.open(io.BytesIO(each))), cv2.COLOR_RGB2BGR) for each in content]
    return images, [f"c{label}" for label in table["label"].to_pylist()]


def mnist(source: Path) -> tuple[list[np.ndarray], list[str]]:
    return idx(source / "mnist10k", "t10k")


def fashion(source: Path) -> tuple[list[np.ndarray], list[str]]:
    parts = [idx(source / "fashion900", part) for part in ("train", "t10k")]
    return [*parts[0][0], *parts[1][0]], [*parts[0][1], *parts[1][1]]


def idx(folder: Path, part: str) -> tuple[list[np.ndarray], list[str]]:
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return [*pixels], [f"c{label}" for label in np.frombuffer(labels, np.uint8, offset=8).tolist()]


if __name__ == "__main__":
    main()
