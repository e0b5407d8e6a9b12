"""Episodes of few classes: does a start that was learned from them learn unseen classes better than a plain one?

30 classes of three data sets, grey, at 16 px: ten each of CIFAR-10, MNIST and Fashion-MNIST, `--per-class` images of
each. Three digits and three garments, drawn by the seed, are for the test alone; val has two of each, and two of
CIFAR-10; 18 train. So nothing has seen a test class before it is tested on it. The network is builtin:fashion_cnn.

Starts: `random`; `plain`, trained on the training classes in the ordinary way (5 epochs); `plain, twice as long`, the
same again from there; and from `plain`, with as many images as that, `protonet`, `maml`, `anil`, `reptile`, and
`maml-2` (second order); and `protonet, from nothing`, with as many images as `plain`. Two measurements, both on the
test classes alone: the run's own test (600 fixed episodes, 5-way 1-shot) before and after, and `warmstart finetune`
from each start to 5-way 1-shot tasks (5 images; `--tasks` of them for each seed, the same for all starts), answered for
100 others. Intervals: 95 % over episodes, and over tasks.

Interrupted, it goes on where it was when it is started again with the same --out; seeds may be given one by one, in
any order. Writes TABLE.md and LOG-SEED.jsonl to --out.

    python bench/meta.py --cifar CIFAR10 --mnist MNIST10K --fashion FASHION900 --out FOLDER [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from runs import finish

import warmstart as ws
from warmstart.data import counters
from warmstart.data.idx import read_idx
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.stats import mean_interval

MODEL, PX = "builtin:fashion_cnn", 16
COMMON: dict[str, Any] = {"image_size": str(PX), "device": "cpu", "workers": 0, "tensorboard": False}
EPISODES = {"meta.way": 5, "meta.shot": 1, "meta.query": 5, "meta.episodes": 60, "meta.val_episodes": 40}
EPOCHS = 5
FROM_NOTHING = "protonet, from nothing"
METHODS: dict[str, dict[str, Any]] = {
    "protonet": {"meta": "protonet", "meta.temperature": 64, "lr": 1e-4},
    FROM_NOTHING: {"meta": "protonet", "meta.temperature": 64, "lr": 1e-3, "weights": "none", "model": MODEL},
    "maml": {"meta": "maml", "accumulate": 2, "lr": 1e-4},
    "anil": {"meta": "anil", "meta.inner_lr": 0.05, "accumulate": 2, "lr": 1e-4},
    "reptile": {"meta": "reptile", "accumulate": 2, "lr": 1e-4},
    "maml-2": {"meta": "maml", "accumulate": 2, "meta.second_order": True, "lr": 1e-4},
}
ALL_SEEDS = ("protonet", FROM_NOTHING, "maml")  # the others have the first seed alone
STARTS = ("random", "plain", LONGER := "plain, twice as long", *METHODS)
TUNING: dict[str, Any] = {"batch_size": 5, "val_ratio": 0, "eval_every": "1000epochs", "augment": "none"}
NUM_QUERY = 20


def main() -> None:
    args = arguments()
    out = Path(args.out)
    pool = write_pool(args, out / "pool")
    for seed in [] if args.table else args.seeds:
        log = out / f"LOG-{seed}.jsonl"
        starts = learned(out, pool, seed)
        done = {(row["start"], row["task"]) for row in rows(log)}
        for number in range(args.tasks):
            for name, weights in starts.items():
                if (name, number) not in done:
                    accuracy = tuned(out / f"task-{seed}", pool, weights, (seed, number))
                    tell(log, {"start": name, "seed": seed, "task": number, "accuracy": accuracy})
    (out / "TABLE.md").write_text(table(out, args.seeds), encoding="utf-8")
    print(table(out, args.seeds))


def learned(out: Path, pool: Path, seed: int) -> dict[str, str | None]:
    """Name -> the run to start from."""
    held = held_out(seed)
    first = plain(out, pool, held, seed, None)
    starts = {"random": None, "plain": first, LONGER: plain(out, pool, held, seed, first)}
    for name, settings in METHODS.items():
        if seed and name not in ALL_SEEDS:
            continue
        # By the loss: with 40 episodes it tells steps apart that differ by less than accuracy's noise.
        begin = partial(ws.meta, data=str(pool), seed=seed, epochs=EPOCHS, select_by="loss")
        classes = {f"meta.{split}_classes": ",".join(names) for split, names in held.items()}
        given = {"weights": first} | settings | classes | COMMON | EPISODES
        starts[name] = str(finish(folder_of(out, name, seed), partial(begin, **given)).path)
    return starts


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("cifar", "mnist", "fashion", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--per-class", type=int, default=90)
    parser.add_argument("--tasks", type=int, default=20, help="for each seed")
    parser.add_argument("--table", action="store_true", help="of what is there so far, and train nothing")
    parser.add_argument(
        "--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2]
    )
    return parser.parse_args()


def write_pool(args: argparse.Namespace, folder: Path) -> Path:
    """Class folders of all three data sets as grey pictures of 16 px."""
    if folder.exists():
        return folder
    temporary = folder.with_suffix(f".{os.getpid()}")
    sets = {"cifar": _cifar(Path(args.cifar), args.per_class)}
    for name, root in (("digit", args.mnist), ("garment", args.fashion)):
        kinds = ("images-idx3", "labels-idx1")
        found = [[read_idx(path) for path in sorted(Path(root).glob(f"*{kind}-ubyte.gz"))] for kind in kinds]
        sets[name] = tuple(np.concatenate(parts) for parts in found)
    for name, (images, labels) in sets.items():
        for label in range(10):
            place = temporary / f"{name}{label}"
            place.mkdir(parents=True)
            for row in np.flatnonzero(labels == label)[: args.per_class].tolist():
                picture = cv2.resize(images[row], (PX, PX), interpolation=cv2.INTER_AREA)
                Image.fromarray(picture).convert("L").save(place / f"{row:05d}.png")
    if folder.exists():  # another process was faster
        shutil.rmtree(temporary)
        return folder
    return temporary.rename(folder)


def _cifar(root: Path, per_class: int) -> tuple[list[np.ndarray], np.ndarray]:
    content = pq.read_table(root / "cifar10-test.parquet").to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in content["image"]]
    return images, np.array(content["label"])


def held_out(seed: int) -> dict[str, list[str]]:
    """The classes of val and test."""
    numbers = {
        name: np.random.default_rng([seed, k]).permutation(10) for k, name in enumerate(("digit", "garment"))
    }
    test = [f"{name}{number}" for name, order in numbers.items() for number in order[:3]]
    val = [f"{name}{number}" for name, order in numbers.items() for number in order[3:5]]
    return {"val": [*val, "cifar0", "cifar1"], "test": test}


def plain(out: Path, pool: Path, held: dict[str, list[str]], seed: int, before: str | None) -> str:
    """The run that learned the training classes in the ordinary way, from nothing, or on from `before`."""
    part = out / f"classes-{seed}"
    skipped = {name for names in held.values() for name in names}
    for source in sorted(pool.iterdir()):
        if source.name not in skipped and not (part / source.name).exists():
            shutil.copytree(source, part / source.name)
    start = {"model": MODEL, "weights": "none"} if before is None else {"weights": f"{before}@last"}
    begin = partial(ws.finetune, data=str(part), seed=seed, epochs=EPOCHS, train_ratio=0.9, val_ratio=0.1)
    name = "plain" if before is None else "longer"
    return str(finish(out / f"{name}-{seed}", partial(begin, lr=1e-3, **start, **COMMON)).path)


def tuned(folder: Path, pool: Path, weights: str | None, of: tuple[int, int]) -> float:
    """Test accuracy after fine-tuning from a start to a 5-way 1-shot task, which (seed, number) draws."""
    generator, classes = counters.generator(*of, counters.FIXED_EPISODE), held_out(of[0])["test"]
    shutil.rmtree(folder, ignore_errors=True)
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "test": []}
    for name in [classes[n] for n in generator.permutation(len(classes))[:5]]:
        files = sorted((pool / name).iterdir())
        drawn = [files[n] for n in generator.choice(len(files), 1 + NUM_QUERY, replace=False)]
        for split, paths in (("train", drawn[:1]), ("test", drawn[1:])):
            images[split] += [np.asarray(Image.open(path)) for path in paths]
            labels[split] += [name] * len(paths)
    data = {split: (np.stack(images[split]), labels[split]) for split in images}
    start = (
        {"model": MODEL, "weights": "none"} if weights is None else {"weights": weights, "freeze_bn": True}
    )
    result = ws.finetune(
        data=data, seed=of[0], epochs=20, lr=1e-3, output_dir=str(folder), **COMMON, **TUNING, **start
    )
    return float(result.metrics["accuracy"])


def tell(log: Path, row: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def table(out: Path, seeds: list[int]) -> str:
    """Means over seeds, in Markdown, with the mean interval over episodes, and the interval over all tasks."""
    lines = [
        "| start | seeds | 600 episodes: accuracy before | after | loss before, after | paired difference, by seed"
        " | after `finetune` to 5 images | against `plain` on the same tasks | tasks |",
        "|---" * 9 + "|",
    ]
    tasks: dict[str, dict[tuple[int, int], float]] = {name: {} for name in STARTS}
    for row in (row for seed in seeds for row in rows(out / f"LOG-{seed}.jsonl")):
        tasks[row["start"]][row["seed"], row["task"]] = row["accuracy"]
    for name in STARTS:
        runs = [Run(folder_of(out, name, seed)) for seed in seeds if name in METHODS]
        own = [gain for run in runs if (run.path / layout.GAINS).exists() for gain in run.gains]
        cells = [name, str(len(own) or len({seed for seed, _ in tasks[name]})), "-", "-", "-", "-"]
        if own:
            half = mean((gain["best"]["accuracy_high"] - gain["best"]["accuracy_low"]) / 2 for gain in own)
            before, after = ([gain[when] for gain in own] for when in ("start", "best"))
            cells[2] = spread([row["accuracy"] for row in before])
            cells[3] = f"{spread([row['accuracy'] for row in after])} (each ± {half:.3f})"
            cells[4] = ", ".join(f"{mean(row['loss'] for row in rows_):.2f}" for rows_ in (before, after))
            differences = (f"{g['difference']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}]" for g in own)
            cells[5] = "; ".join(differences)
        lines.append(f"| {' | '.join([*cells, *_tasks(tasks[name], tasks['plain'])])} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _tasks(own: dict[tuple[int, int], float], plain: dict[tuple[int, int], float]) -> list[str]:
    values = list(own.values())
    if len(values) < 2:
        return ["-", "-", str(len(values))]
    low, high = mean_interval(values)
    paired = [value - plain[key] for key, value in own.items() if key in plain]
    bounds = mean_interval(paired)
    against = f"{mean(paired):+.3f} [{bounds[0]:+.3f}, {bounds[1]:+.3f}]"
    return [f"{mean(values):.3f} [{low:.3f}, {high:.3f}]", against, str(len(values))]


if __name__ == "__main__":
    main()
