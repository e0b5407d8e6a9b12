"""Runs with one fault each, and healthy ones, on few real images: what bench/diagnose.py diagnoses.

A start model learns part A of a data set, ten classes of 28 px. All cases adapt it to part B, the same kind of images,
moved, paler and noisy. All follows from the seed. What settings cannot do, the data do: labels, splits
and copies are made in the case's own table. Test images are clean in every case, and the same for a seed.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from runs import finish

import warmstart as ws
from warmstart.data.idx import read_idx

MODEL = "builtin:fashion_cnn"
COMMON: dict[str, Any] = {
    **{"image_size": "28", "device": "cpu", "workers": 0, "tensorboard": False, "pictures": False},
    **{"batch_size": 32, "lr": 1e-3, "epochs": 8, "log_every": "5steps"},
}
RARE = 6  # the class that is the rare one of two: shirts, or sixes
SIZES = {"fashion": (200, 300, 160, 240), "digits": (300, 400, 300, 1000)}  # A, then train, val and test of B

Row = tuple[str, str, str]  # path, label, split
Change = Callable[[list[Row], np.random.Generator, Path], list[Row]]


@dataclass(frozen=True)
class Case:
    """`cause` is the finding that should be named first (None: healthy); `settings` are on top of COMMON."""

    cause: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    change: Change | None = None
    start: str | None = "start"  # `start`, `untrained`, or None: no weights


def noisy(rows: list[Row], rng: np.random.Generator, _: Path) -> list[Row]:
    """Another label, drawn evenly, for 30 % of the images of train and val."""
    names = sorted({label for _, label, _ in rows})
    found = []
    for path, label, split in rows:
        wrong = split != "test" and rng.random() < 0.3
        found.append((path, rng.choice([n for n in names if n != label]) if wrong else label, split))
    return found


def in_order(rows: list[Row], _: np.random.Generator, __: Path) -> list[Row]:
    """Sorted by class and cut without shuffling: the end is val. Three of each class come before all."""
    test = [row for row in rows if row[2] == "test"]
    rest = sorted((row for row in rows if row[2] != "test"), key=lambda row: row[1])
    num_val = sum(row[2] == "val" for row in rows)
    first = [row for name in sorted({r[1] for r in rest}) for row in [r for r in rest if r[1] == name][:3]]
    ordered = first + [row for row in rest if row not in first]
    cut = len(ordered) - num_val
    return [(p, label, "train" if n < cut else "val") for n, (p, label, _) in enumerate(ordered)] + test


def doubled(rows: list[Row], _: np.random.Generator, folder: Path) -> list[Row]:
    """Every val image once more in train, as a file of another name."""
    copies = []
    for path, label, split in rows:
        if split == "val":
            copy = folder / "copies" / Path(path).name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            copies.append((str(copy), label, "train"))
    return rows + copies


def rare(rows: list[Row], rng: np.random.Generator, _: Path) -> list[Row]:
    """One class against all others, 5 % of train and of val."""
    wanted = dict.fromkeys(("train", "val"), 0)
    for split in wanted:
        wanted[split] = round(0.05 * sum(row[2] == split for row in rows))
    found, taken = [], dict.fromkeys(wanted, 0)
    for path, label, split in rows:
        is_rare = label == f"class {RARE}"
        if is_rare and split in wanted:
            taken[split] += 1
            if taken[split] > wanted[split]:
                continue
        found.append((path, "rare" if is_rare else "rest", split))
    return found


def few_val(rows: list[Row], _: np.random.Generator, __: Path) -> list[Row]:
    """64 images of val; the others are left out."""
    val = [row for row in rows if row[2] == "val"][:64]
    return [row for row in rows if row[2] != "val"] + val


def renamed(rows: list[Row], _: np.random.Generator, __: Path) -> list[Row]:
    """Other names of the classes, so that the start model's head cannot be kept."""
    return [(path, label.replace("class", "kind"), split) for path, label, split in rows]


FAULTS = {
    "rate x30": Case("rate_too_high", {"lr": 3e-2}),
    "rate /100": Case("rate_too_low", {"lr": 1e-5}),
    "no shuffle": Case("splits_differ", change=in_order),
    "label noise 30 %": Case("label_noise", change=noisy),
    "val in train": Case("leakage", change=doubled),
    "frozen head": Case("head_frozen", {"freeze": "head"}, renamed),
    "BatchNorm at batch 2": Case("norms", {"batch_size": 2, "epochs": 4, "log_every": "50steps"}),
    "95:5": Case("imbalance", change=rare),
    "patience 1": Case("stopped_early", {"patience": 1, "eval_every": "3steps"}),
    "64-image val": Case("val_too_small", change=few_val),
    "dropout .9": Case("too_regularised", {"dropout": 0.9}),
    "weights never loaded": Case("weights_never_loaded", start="untrained"),
}
HEALTHY = {
    "healthy: adapt": Case(None),
    "healthy: from nothing": Case(None, {"epochs": 16, "model": MODEL}, start=None),
    "healthy: SGD, patience 5": Case(
        None, {"optimizer": "sgd", "lr": 0.02, "patience": 5, "epochs": 12, "warmup": "1epochs"}
    ),
    "healthy: first block frozen": Case(None, {"freeze": "backbone<1", "batch_size": 16, "lr": 5e-4}),
}
CASES = FAULTS | HEALTHY


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def train(out: Path, data: tuple[str, Path], name: str, seed: int) -> Path:
    """The run of a case, made or finished; `data` are the name of a data set and where it lies."""
    case, folder = CASES[name], out / data[0] / str(seed)
    run, table = folder / "runs" / slug(name), folder / f"{slug(name)}.csv"
    if not table.exists():
        rows = pool(folder, *data, seed)["b"]
        rng = np.random.default_rng([seed, 1])
        write_table(table, rows if case.change is None else case.change(rows, rng, folder))
    settings = {**COMMON, **case.settings, "data": str(table), "seed": seed}
    settings |= {"cache_dir": str(out / "cache")}
    if case.start is None:
        settings |= {"weights": "none"}
    else:
        settings |= {"weights": str(start_model(out, data, case.start, seed))}
    finish(run, lambda **places: ws.finetune(**settings, **places))
    return run


def start_model(out: Path, data: tuple[str, Path], kind: str, seed: int) -> Path:
    """A file of weights: of part A, or as they were before any training."""
    folder = out / data[0] / str(seed)
    file = folder / f"{kind}.safetensors"
    if file.exists():
        return file
    table = folder / "a.csv"
    write_table(table, pool(folder, *data, seed)["a"])
    settings = {**COMMON, "data": str(table), "seed": seed, "model": MODEL, "weights": "none"}
    settings |= {"cache_dir": str(out / "cache"), "val_ratio": 0.2, "train_ratio": 0.8}
    settings |= {"epochs": 15} if kind == "start" else {"epochs": 1, "max_steps": 1, "lr": 1e-9}
    finish(
        folder / "runs" / f"a-{kind}", lambda **places: ws.finetune(**settings, save_as=str(file), **places)
    )
    return file


def pool(folder: Path, kind: str, place: Path, seed: int) -> dict[str, list[Row]]:
    """Rows of part A (no split) and of part B; the images are written once."""
    images = np.concatenate([read_idx(path) for path in sorted(place.glob("*images-idx3*"))])
    labels = np.concatenate([read_idx(path) for path in sorted(place.glob("*labels-idx1*"))])
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(labels))[: sum(SIZES[kind])]
    parts = np.split(order, np.cumsum(SIZES[kind])[:-1])
    found: dict[str, list[Row]] = {"a": [], "b": []}
    for split, chosen in zip(("", "train", "val", "test"), parts, strict=True):
        for number in chosen.tolist():
            path = folder / "images" / f"{split or 'a'}-{number:05}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                own = np.random.default_rng([seed, 2, number])
                cv2.imwrite(str(path), images[number] if not split else shifted(images[number], own))
            found["b" if split else "a"].append((str(path), f"class {labels[number]}", split))
    return found


def shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (28, 28): moved by 1 px, paler, noise of 20 grey levels."""
    moved = np.roll(image, (1, -1), axis=(0, 1)).astype(np.float64)
    return (moved * 0.8 + 20 + rng.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)


def write_table(path: Path, rows: list[Row]) -> None:
    with_split = any(split for _, _, split in rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writes = csv.writer(stream)
        writes.writerow(("path", "label", "split") if with_split else ("path", "label"))
        writes.writerows(row if with_split else row[:2] for row in rows)
