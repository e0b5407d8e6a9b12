"""Half of the MACs, and what is left of the accuracy: CIFAR-10 at 64 px, a MobileNetV3 small, three seeds.

The start is `--weights`, trained on all 50,000 training images. Each kind makes it smaller once, to half of its MACs,
and recovers for two epochs on 10,000 of these images (1,000 of each class, drawn by a fixed seed), with the start as
its teacher (as by `compress --distil`); 1,000 others are val; test has all 10,000. Kinds: `taylor` and `l1` (what makes
a channel important), `random` (the control), `factorised` (low rank, by SVD), and `original`, which is trained on in
the same way without losing anything. All have the same steps and rate; the seed draws the order of the images, and the
channels of `random`. Accuracy is that of the last step.

Latency is measured at the end, in one process: medians of rounds in which the original and one model take turns.

Interrupted, it goes on where it was when it is started again with the same --out; --runs N ends it after N trainings.

    python bench/compress.py --cifar CIFAR10 --weights W.safetensors --out FOLDER [--seeds 3] [--kinds taylor,random]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from distil import spread, write_data
from runs import finish, is_done

import warmstart as ws
from warmstart.config.compress_section import CompressConfig
from warmstart.inference.restore import restore
from warmstart.methods.compress.bare_file import run_of_file
from warmstart.methods.compress.cost import compare_latencies, count_macs
from warmstart.methods.compress.editors import EDITORS
from warmstart.methods.compress.rounds import edited_model
from warmstart.methods.compress.subject import open_subject
from warmstart.models.build import metadata_for
from warmstart.models.tensor_file import TensorFile
from warmstart.run import writer

CPU = torch.device("cpu")
ORIGINAL = "original"
KINDS: dict[str, dict[str, Any]] = {
    ORIGINAL: {},
    "taylor": {"importance": "taylor"},
    "random": {"importance": "random"},
    "l1": {"importance": "l1"},
    "factorised": {"method": "factorise"},
}
EXAMPLE = torch.zeros(1, 3, 64, 64)
AMOUNT = 0.5
TRAINING: dict[str, Any] = {
    "image_size": "64",
    "batch_size": 64,
    "lr": 1e-3,
    "augment": "none",
    "flip": 0.5,
    "scheduler": "cosine",
    "warmup": 0.05,
    "distill_alpha": 0.7,
    "tensorboard": False,
    "device": "cpu",
}
HEAD = (
    "| | MMACs | parameters | test accuracy at once | after recovery | less the original, by seed "
    "| time at batch 1 | at batch 32 |"
)


class Enough(Exception):
    """As many trainings as were asked for."""


def main() -> None:
    args = arguments()
    out = Path(args.out)
    data = write_data(Path(args.cifar), out / "data")
    left = [args.runs]
    kinds = list(KINDS) if args.kinds is None else args.kinds.split(",")
    try:
        for seed in range(args.seeds):
            for kind in kinds:
                trained(args, data, kind, seed, left)
    except Enough:
        return
    records = [row for kind in KINDS for seed in range(args.seeds) if (row := record(out, kind, seed))]
    times = latency(args, [kind for kind in KINDS if any(row["kind"] == kind for row in records)])
    rows = [*records, *times]
    (out / "LOG.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (out / "TABLE.md").write_text(table(records, times), encoding="utf-8")
    print(table(records, times))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cifar", required=True, help="folder with cifar10-train.parquet and cifar10-test.parquet"
    )
    for name in ("weights", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--kinds", help=f"these alone: {','.join(KINDS)}")
    return parser.parse_args()


def trained(args: argparse.Namespace, data: Path, kind: str, seed: int, left: list[int]) -> None:
    """Make the model smaller, train it, and measure it on test before and after."""
    folder = Path(args.out) / f"{kind}-{seed}"
    kept = folder.with_suffix(".json")
    if kept.exists():
        return
    if not is_done(folder):
        if not left[0]:
            raise Enough
        left[0] -= 1
    start = folder.with_suffix(".safetensors")
    if not start.exists():
        write_smaller(args, data, kind, seed, start)
    own = {"weights": str(start), "teacher": args.weights, "data": str(data), "epochs": args.epochs}
    settings = {**TRAINING, **own, "seed": seed}
    run = finish(folder, partial(ws.finetune, **settings))
    found = {
        "kind": kind,
        "seed": seed,
        "at_once": ws.evaluate(str(start), str(data), split="test").metrics["accuracy"],
        "recovered": ws.evaluate(f"{run.path}@last", split="test").metrics["accuracy"],
        "seconds": run.status["seconds"],
        **sizes(start),
    }
    kept.write_text(json.dumps(found), encoding="utf-8")


def write_smaller(args: argparse.Namespace, data: Path, kind: str, seed: int, path: Path) -> None:
    settings = CompressConfig(**KINDS[kind], data=str(data), seed=seed)
    reference = run_of_file(args.weights, settings, Path(args.out) / "whole", False)
    subject = open_subject(reference, settings, CPU)
    built = subject.built
    if kind != ORIGINAL:
        built = edited_model(subject, EDITORS[settings.method](subject, AMOUNT))
    state = {name: tensor.contiguous() for name, tensor in built.module.state_dict().items()}
    writer.write_whole(path, b"".join(bytes(part) for part in TensorFile(state, metadata_for(built))))


def sizes(path: Path) -> dict[str, float]:
    module = restore(str(path), CPU).built.module
    return {
        "macs": count_macs(module, EXAMPLE),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def record(out: Path, kind: str, seed: int) -> dict[str, Any] | None:
    kept = out / f"{kind}-{seed}.json"
    return json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None


def latency(args: argparse.Namespace, kinds: list[str]) -> list[dict[str, Any]]:
    """Of the model of seed 0 of each kind, beside the original's."""
    original = restore(args.weights, CPU).built.module
    found = []
    for kind in kinds:
        module = restore(str(Path(args.out) / f"{kind}-0.safetensors"), CPU).built.module
        own, others = compare_latencies(module, original, lambda batch: EXAMPLE.expand(batch, -1, -1, -1))
        found += [
            {"kind": kind, "batch": batch, **asdict(own[batch]), "original": asdict(others[batch])}
            for batch in own
        ]
    return found


def table(records: list[dict[str, Any]], times: list[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds; what is less than the original's is paired by seed."""
    whole = {row["seed"]: row["recovered"] for row in records if row["kind"] == ORIGINAL}
    lines = [HEAD, "|---" * 8 + "|"]
    for kind in dict.fromkeys(str(row["kind"]) for row in records):
        own = [row for row in records if row["kind"] == kind]
        less = [row["recovered"] - whole[row["seed"]] for row in own if row["seed"] in whole]
        cells = [
            f"{mean(row['macs'] for row in own) / 1e6:.2f}",
            f"{mean(row['parameters'] for row in own):,.0f}",
            spread([row["at_once"] for row in own], 4),
            spread([row["recovered"] for row in own], 4),
            "-" if kind == ORIGINAL or not less else spread(less, 4),
            *(f"{row['median'] / row['original']['median']:.2f} x" for row in times if row["kind"] == kind),
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
