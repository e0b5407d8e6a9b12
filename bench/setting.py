"""What all rows of the bench share: where the data are, how much of it, and the folders made for the occasion."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

SPLITS = ("train", "val", "test")
QUICK_PER_CLASS = 48
QUICK_PX = 32


@dataclass(frozen=True)
class Setting:
    """One call of the bench. `work` is a temporary folder; `limit` shortens CIFAR-10.

    After the first round, peers that took `leave_out` times as long as the fastest one are left out. The file
    `lock` is held while something is measured, so that other work on the machine can take turns. Rounds are
    counted from `first_round`, where others were measured before.
    """

    data: Path
    weights: Path
    cifar: Path | None
    camvid: Path | None
    work: Path
    device: str = "cpu"
    rounds: int = 5
    quick: bool = False
    limit: int | None = None
    workers: int = 2
    leave_out: float | None = None
    lock: Path | None = None
    first_round: int = 0

    def px(self, px: int) -> int:
        return QUICK_PX if self.quick else px

    def epochs(self, epochs: int) -> int:
        """Two at least: the first epoch is left out of some figures."""
        return min(2, epochs) if self.quick else epochs


def count_images(data: Path) -> dict[str, int]:
    return {split: sum(1 for _ in (data / split).glob("*/*")) for split in SPLITS if (data / split).is_dir()}


def count_classes(data: Path) -> int:
    return sum(folder.is_dir() for folder in (data / "train").iterdir())


def start_weights(source: Path, work: Path) -> Path:
    """A copy without the classifier and its class names, so that every side starts from a fresh head."""
    copy = work / "start.safetensors"
    with safe_open(source, "np") as file:
        stated = {key: file.metadata()[key] for key in ("arch", "mean", "std")}
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith("classifier.")}  # noqa: SIM118
    save_file(tensors, copy, metadata=stated)
    return copy


def part_of(
    data: Path,
    folder: Path,
    per_class: int = QUICK_PER_CLASS,
    splits: tuple[str, ...] = SPLITS,
    share: int = 1,
) -> Path:
    """Links to the first images of every folder of these splits; outside of train one of `share`."""
    for split in splits:
        number = per_class if split == "train" else per_class // share
        for source in sorted((data / split).iterdir()):
            target = folder / split / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:number]:
                (target / image.name).symlink_to(image.resolve())
    return folder


def synthetic_jpegs(folder: Path, num_train: int, size: tuple[int, int], num_others: int = 64) -> Path:
    """Two classes of smooth coloured noise, `size` (height, width) in pixels; `num_others` each in val and test."""
    generator = np.random.default_rng(0)
    for split, number in (("train", num_train), ("val", num_others), ("test", num_others)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
        for i in range(number):
            coarse = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
            target = folder / split / "ab"[i % 2] / f"{i:06d}.jpg"
            assert cv2.imwrite(str(target), image), f"cannot write {target}"
    return folder


def cifar_folder(setting: Setting) -> tuple[Path, dict[str, int]]:
    """CIFAR-10 as train.parquet (50,000) and val.parquet (the 10,000 of its test), and the two counts."""
    assert setting.cifar is not None
    folder = setting.work / "cifar"
    folder.mkdir(exist_ok=True)
    limit = setting.limit or (320 if setting.quick else None)
    counts = {}
    for split, source, share in (("train", "train", 1), ("val", "test", 5)):
        table = pq.read_table(setting.cifar / f"cifar10-{source}.parquet")
        table = table if limit is None else table.slice(0, max(64, limit // share))
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=1000)
        counts[split] = table.num_rows
    return folder, counts


def machine() -> dict[str, object]:
    """Processor, cores, memory and graphics card, as the system names them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": names[0] if names else "unknown", "cores": cores, "memory_gib": round(memory)}


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
