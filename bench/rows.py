"""The measurements, one function per row of docs/performance.md: each yields records, side by side, round by round."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from setting import Setting, cifar_folder, count_classes, count_images, part_of, synthetic_jpegs
from sides import (
    LIMIT,
    OURS,
    PEERS,
    alone,
    resume_copy,
    run_limit,
    run_peer,
    run_process,
    run_script,
    run_warmstart,
    score_of,
    stopped_run,
)

Records = Iterator[dict]
HEAD = {"freeze": "backbone", "views": 2}
LAST2 = {"freeze": "stem,blocks.0,blocks.1,blocks.2,blocks.3", "views": 2}


def alternate(
    setting: Setting, sides: dict[str, Callable[[int], dict]], rounds: int | None = None
) -> Records:
    """All sides in every round, each round beginning with another one; `sides` map a round to a record."""
    names, seconds = list(sides), {}
    first, rounds = setting.first_round, rounds or (1 if setting.quick else setting.rounds)
    for number in range(first, first + rounds):
        shift = number % len(names)
        for side in names[shift:] + names[:shift]:
            record = sides[side](number)
            seconds.setdefault(side, record.get("wall_s"))
            yield {"round": number, "side": side} | record
        if setting.leave_out is not None and number == first:
            fastest = min((seconds[side] for side in PEERS if seconds.get(side)), default=0)
            slow = [side for side in PEERS if (seconds.get(side) or 0) > setting.leave_out * fastest]
            names = [side for side in names if side not in slow]


def work(setting: Setting, mode: str, flags: dict, epochs: int, px: int) -> dict[str, Callable[[int], dict]]:
    """The peers and warmstart on the same work."""
    epochs, px = setting.epochs(epochs), setting.px(px)

    def peer(side: str) -> Callable[[int], dict]:
        return lambda seed: run_peer(setting, side, mode=mode, epochs=epochs, px=px, seed=seed)

    images = count_images(setting.data)["train"]
    ours = {"epochs": epochs, "image_size": px, **flags}
    return {side: peer(side) for side in PEERS} | {
        OURS: lambda seed: run_warmstart(setting, images, seed=seed, **ours)
    }


def full(setting: Setting) -> Records:
    counts = count_images(setting.data)
    shape = (counts["train"], counts["val"], count_classes(setting.data))
    px, epochs = setting.px(128), setting.epochs(3)
    limit = {LIMIT: lambda _: run_limit(setting, shape, px=px, epochs=epochs)}
    yield from alternate(setting, limit | work(setting, "full", {}, epochs=3, px=128))


def end_to_end(setting: Setting) -> Records:
    yield from alternate(setting, work(setting, "full", {}, epochs=10, px=128))


def head(setting: Setting) -> Records:
    yield from alternate(setting, work(setting, "head", HEAD, epochs=20, px=128))


def last2(setting: Setting) -> Records:
    yield from alternate(setting, work(setting, "last2", LAST2, epochs=10, px=128))


def accuracy(setting: Setting) -> Records:
    """A round is a seed. The weights of the last step on every side."""
    everyone = replace(setting, leave_out=None)  # the slowest may be the best
    for record in alternate(everyone, work(setting, "head", HEAD, epochs=20, px=64)):
        if record["side"] == OURS and "checkpoint" in record:
            record["right"] = score_of(setting, record["checkpoint"], setting.px(64))
        yield record


def warm(setting: Setting) -> Records:
    """The same head-only run twice, the second time from the store of the first."""
    images = count_images(setting.data)["train"]
    flags = {"epochs": setting.epochs(20), "image_size": setting.px(128), **HEAD}
    for number in range(1 if setting.quick else setting.rounds):
        cache = setting.work / f"warm-{number}"
        for side in ("cold", "warm"):
            yield {"round": number, "side": side} | run_warmstart(setting, images, cache_dir=cache, **flags)
        shutil.rmtree(cache, ignore_errors=True)


def cifar(setting: Setting) -> Records:
    """One epoch of 50,000 at 64 px, with the 10,000 of the test split as validation."""
    if setting.cifar is None:
        yield from (failed(side, "no --cifar folder was given") for side in (LIMIT, OURS))
        return
    folder, counts = cifar_folder(setting)
    shape, px = (counts["train"], counts["val"], 10), setting.px(64)
    flags = {"data": folder, "epochs": 1, "image_size": px}
    sides = {
        LIMIT: lambda _: run_limit(setting, shape, px=px, epochs=1),
        OURS: lambda _: run_warmstart(setting, counts["train"], **flags),
    }
    yield from alternate(setting, sides)


def memory(setting: Setting) -> Records:
    """One epoch over synthetic photographs, and over ten times as many; nothing is cached."""
    few = 128 if setting.quick else 1000
    sets = {few: synthetic_jpegs(setting.work / "few", few, (360, 400))}
    sets[10 * few] = synthetic_jpegs(setting.work / "many", 10 * few, (360, 400))
    flags = {"epochs": 1, "image_size": setting.px(64), "cache": "off", "log_every": "1steps"}

    def run(number: int) -> Callable[[int], dict]:
        return lambda _: run_warmstart(setting, number, data=sets[number], **flags)

    yield from alternate(setting, {f"{number:,} images": run(number) for number in sets})


def overhead(setting: Setting) -> Records:
    """Two steps from a warm store; importing torch and timm alone is a side of its own."""
    images, cache = count_images(setting.data)["train"], setting.work / "overhead"
    flags = {"epochs": 1, "max_steps": 2, "log_every": "1steps", "image_size": setting.px(128)}
    run_warmstart(setting, images, cache_dir=cache, **flags)  # builds the store
    sides = {
        "imports": lambda _: only_imports(setting),
        OURS: lambda _: run_warmstart(setting, images, cache_dir=cache, **flags),
    }
    yield from alternate(setting, sides)


def only_imports(setting: Setting) -> dict:
    with alone(setting.lock):
        return run_process([sys.executable, "-c", "import torch, timm"])[0]


def workers(setting: Setting) -> Records:
    """The weights after two epochs under every way to come by the pixels, hashed.

    `small` images are kept by the store as they are, so every way must give the same weights; of
    photographs the store keeps reduced ones.
    """
    photographs = setting.data if setting.quick else part_of(setting.data, setting.work / "part")
    small = synthetic_jpegs(setting.work / "small", 96, (48, 48))
    ways = {
        "off, 0 workers": {"cache": "off", "workers": 0},
        "off, 4 workers": {"cache": "off", "workers": 4},
        "ram, 0 workers": {"cache": "ram", "workers": 0},
        "ram, 4 workers": {"cache": "ram", "workers": 4},
        "disk, cold": {"cache": "disk"},
        "disk, warm": {"cache": "disk"},
    }
    for kind, data in (("photographs", photographs), ("small", small)):
        shared = replace(setting, data=data)
        fixed = {"epochs": 2, "image_size": 32, "cache_dir": setting.work / f"workers-{kind}"}
        for side, flags in ways.items():
            record = run_warmstart(shared, count_images(data)["train"], **fixed, **flags)
            yield {"round": 0, "side": side, "images": kind} | record
        frozen = fixed | HEAD | {"feature_cache": "on"}
        for side in ("features, cold", "features, warm"):
            record = run_warmstart(shared, count_images(data)["train"], **frozen)
            yield {"round": 0, "side": side, "images": kind} | record


SEGMENTERS = {"builtin:microsegformer": "patch_embed*,block*", "smp:Unet/resnet18": "encoder*"}
MASK_BATCH = 8


def mask_flags(setting: Setting, model: str, epochs: int) -> dict:
    flags = {
        "data": setting.camvid,
        "model": model,
        "weights": "none",
        "ignore": 11,
        "batch_size": MASK_BATCH,
    }
    return {**flags, "epochs": epochs, "image_size": setting.px(128)}


def count_masks(data: Path, split: str) -> int:
    return sum(1 for _ in (data / split / "masks").iterdir())


def segmentation(setting: Setting) -> Records:
    """Two models, each beside its limit."""
    if setting.camvid is None:
        yield from (failed(side, "no --camvid folder was given") for side in (LIMIT, OURS))
        return
    counts = (count_masks(setting.camvid, "train"), count_masks(setting.camvid, "val"), 11)
    limit = {"px": setting.px(128), "epochs": 2, "batch": MASK_BATCH, "counts": counts}

    def sides(model: str) -> dict[str, Callable[[int], dict]]:
        ours = mask_flags(setting, model, epochs=2)
        return {
            f"{LIMIT} {model}": lambda _: run_script(setting, "masks_in_memory", {"model": model, **limit}),
            f"{OURS} {model}": lambda seed: run_warmstart(setting, counts[0], seed=seed, **ours),
        }

    for record in alternate(
        setting, {name: run for model in SEGMENTERS for name, run in sides(model).items()}
    ):
        side, model = record["side"].split()
        yield record | {"side": side, "model": model}


def masks_frozen(setting: Setting) -> Records:
    """The decoder trained under a frozen encoder, which is computed in every epoch, or once per view."""
    if setting.camvid is None:
        yield failed(OURS, "no --camvid folder was given")
        return
    num_images = count_masks(setting.camvid, "train")

    def run(model: str, settings: dict) -> Callable[[int], dict]:
        flags = {**mask_flags(setting, model, epochs=4), "freeze": SEGMENTERS[model], **settings}
        return lambda seed: run_warmstart(setting, num_images, seed=seed, **flags)

    ways = {"features off": {"feature_cache": "off"}, "features on": {"feature_cache": "on", "views": 2}}
    sides = {f"{way}, {model}": run(model, ways[way]) for model in SEGMENTERS for way in ways}
    for record in alternate(setting, sides):
        side, model = record["side"].split(", ")
        yield record | {"side": side, "model": model}


def resume_start(setting: Setting) -> Records:
    """Six steps from a warm store; the same run, stopped after three and resumed."""
    images, cache = count_images(setting.data)["train"], setting.work / "resume"
    flags = {"epochs": 1, "max_steps": 6, "log_every": "1steps", "image_size": setting.px(128)}
    flags |= {"cache_dir": cache}
    run_warmstart(setting, images, **flags)  # builds the store
    stopped = stopped_run(setting, num_rows=3, **flags)
    sides = {
        "fresh": lambda _: run_warmstart(setting, images, **flags),
        "resumed": lambda _: resume_copy(setting, stopped, images),
    }
    yield from alternate(setting, sides)


def failed(side: str, why: str) -> dict:
    return {"round": 0, "side": side, "failure": why}
