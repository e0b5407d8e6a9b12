"""Document 001's story with real data: a model of A is adapted to B; what is gained on B, and what is left of A?

A is CIFAR-10's cats and dogs (9,000 to train, 1,000 val, the 2,000 of its test), B the photographs of `--data-b`
(class folders cat and dog with train, val and test), both at 64 px. A's model is tuned from `--weights`, two epochs.
Every method then has the same number of steps on the same rate; `scratch` is the same network without weights. The
F1 is of the class dog; weights of the last step on all sides, but for `blend`, which is chosen on val.

Interrupted, it goes on where it was when it is started again with the same --out. Writes TABLE.md and LOG.jsonl to it.

    python bench/adapt_a_to_b.py --cifar CIFAR10 --data-b DOGCAT --weights W.safetensors --out FOLDER [--seeds 3]
"""

from __future__ import annotations

import argparse
import io
import json
import time
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from runs import finish

import warmstart as ws
from warmstart.run import layout
from warmstart.run.reader import Run

CLASSES = {3: "cat", 5: "dog"}  # CIFAR-10's numbers
COMMON = {"image_size": "64", "batch_size": 32, "lr": 1e-3, "augment": "light", "tensorboard": False}
ROWS = ("F1 on B", "F1 on A", "loss at step 0", "steps", "seconds")


def main() -> None:
    args = arguments()
    out = Path(args.out)
    data_a = write_a(Path(args.cifar), out / "a")
    records = []
    for seed in range(args.seeds):
        start = finish(
            out / f"start-{seed}",
            partial(ws.finetune, weights=args.weights, data=str(data_a), epochs=2, seed=seed, **COMMON),
        )
        for name, settings in methods(args, data_a, start).items():
            begin = partial(
                ws.finetune, data=args.data_b, retain=str(data_a), seed=seed, **(settings | COMMON)
            )
            # Measured at the start and at the end: what happens between is not asked here.
            paced = partial(begin, epochs=args.epochs, eval_every=f"{args.epochs}epochs")
            run = finish(out / f"{name}-{seed}", paced)
            records.append(record(name, seed, run))
            print(json.dumps(records[-1]), flush=True)
        records.append(blended(out, seed, start, data_a))
        print(json.dumps(records[-1]), flush=True)
    (out / "LOG.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    (out / "TABLE.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", required=True, help="folder with cifar10-train.parquet and cifar10-test.parquet"
    )
    parser.add_argument("--data-b", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


def methods(args: argparse.Namespace, data_a: Path, start: Run) -> dict[str, dict[str, object]]:
    """Name -> what it adds to the common settings; all but the first two begin with the model of A."""
    tuned: dict[str, object] = {"weights": f"{start.path}@last"}
    a = str(data_a)
    found: dict[str, dict[str, object]] = {
        "scratch": {"model": "timm:mobilenetv3_small_100", "weights": "none"},
        "two-stage": {"weights": args.weights, "mix": f"{a}=1:2epochs,{a}=0"},
        "full": {},
        "head-only": {"freeze": "backbone"},
        "layer-wise": {"layer_decay": 0.75},
        "progressive": {"unfreeze": "0:head,1:backbone>.5,3:all"},
        "mixed": {"mix": f"{a}=.3"},
        "replay": {"retain.replay": 0.2, "retain.images": 500},
        "L2-SP": {"retain.l2sp": 0.1},
        "EWC": {"retain.ewc": 1000.0},
        "LwF": {"retain.lwf": 1.0},
    }
    return {name: settings if "weights" in settings else tuned | settings for name, settings in found.items()}


def write_a(cifar: Path, folder: Path) -> Path:
    """Class folders of CIFAR-10's cats and dogs: of the training images, the last 500 of each class are val."""
    if folder.exists():
        return folder
    temporary = folder.with_suffix(".tmp")
    for split in ("train", "test"):
        content = pq.read_table(cifar / f"cifar10-{split}.parquet").to_pydict()
        labels = np.array(content["label"])
        for number, name in CLASSES.items():
            rows = np.flatnonzero(labels == number)
            parts = {"test": rows} if split == "test" else {"train": rows[:-500], "val": rows[-500:]}
            for part, members in parts.items():
                place = temporary / part / name
                place.mkdir(parents=True, exist_ok=True)
                for row in members.tolist():
                    image = Image.open(io.BytesIO(content["image"][row]["bytes"]))
                    image.save(place / f"{row:05d}.png")
    temporary.rename(folder)
    return folder


def record(name: str, seed: int, run: Run) -> dict[str, object]:
    last = run.checkpoint_steps()[-1]
    on_b = ws.evaluate(f"{run.path}@{last}", split="test").metrics
    on_a = [row for row in run.evals.rows if row["split"] == "retain" and row["step"] == last][-1]
    first = next(row for row in run.evals.rows if row["split"] == "val" and row["step"] == 0)
    return {
        "method": name,
        "seed": seed,
        "F1 on B": on_b["f1_positive"],
        "F1 on A": on_a["f1_positive"],
        "loss at step 0": first["loss"],
        "start": {split: at_start(run, split) for split in ("test", "retain")},
        "steps": last,
        "seconds": run.status["seconds"],
    }


def at_start(run: Run, split: str) -> float:
    return next(row["f1_positive"] for row in run.evals.rows if row["split"] == split and row["step"] == 0)


def blended(out: Path, seed: int, start: Run, data_a: Path) -> dict[str, object]:
    """Between the model of A and the last step of full fine-tuning."""
    target = out / f"blend-{seed}"
    begun = time.perf_counter()
    if not layout.is_run(target):
        full = Run(out / f"full-{seed}")
        models = [f"{start.path}@last", f"{full.path}@{full.checkpoint_steps()[-1]}"]
        ws.blend(models, retain=str(data_a), output_dir=str(target))
    seconds = time.perf_counter() - begun
    on_a = ws.evaluate(str(target), data=str(data_a), split="test").metrics
    on_b = ws.evaluate(str(target), split="test").metrics
    both = {"F1 on B": on_b["f1_positive"], "F1 on A": on_a["f1_positive"]}
    return {"method": "blend", "seed": seed, **both, "steps": 0, "seconds": seconds}


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown.

    Shares are of what full fine-tuning of the same seed gains on B and loses on A, against A's model as it is.
    """
    full = {row["seed"]: row for row in records if row["method"] == "full"}
    head = [*ROWS, "of the gain on B given up", "of the loss on A avoided"]
    lines = [f"| method | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    starts = [row["start"] for row in full.values()]
    untouched = [spread([start[split] for start in starts], 3) for split in ("test", "retain")]
    lines.append(f"| A's model as it is | {' | '.join(untouched)} | - | 0 | 0 | 100 % | 100 % |")
    for name in dict.fromkeys(str(row["method"]) for row in records):
        own = [row for row in records if row["method"] == name]
        cells = [
            spread([row[key] for row in own if key in row], 0 if key == "seconds" else 3) for key in ROWS
        ]
        cells[ROWS.index("steps")] = f"{own[0]['steps']}"
        given_up, avoided = [], []
        for row in own:
            most, start = full[row["seed"]], full[row["seed"]]["start"]
            given_up.append((most["F1 on B"] - row["F1 on B"]) / (most["F1 on B"] - start["test"]))
            avoided.append((row["F1 on A"] - most["F1 on A"]) / (start["retain"] - most["F1 on A"]))
        cells += (
            [f"{mean(given_up):.0%}", f"{mean(avoided):.0%}"]
            if name not in ("scratch", "full")
            else ["-", "-"]
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
