"""What `warmstart compress` is asked of: masks, sets of labels, adapters, a margin head, an image tower, tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import write_clip, write_folders

from warmstart import api
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.methods.compress.flow import Compressed

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "epochs": 1, "workers": 0, "device": "cpu", "tensorboard": False, "pictures": False,
    "batch_size": 8, "lr": 1e-3, "augment": "none",
}  # fmt: skip


def images(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 32, 32, 3) of three brightnesses, and which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 3
    pixels = rng.normal(80 + 50 * labels[:, None, None, None], 30, (number, 32, 32, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def smaller(run: str, folder: Path, method: str = "factorise", **given: Any) -> Compressed:
    made = api.compress(run, method=method, output_dir=str(folder), device="cpu", epochs=0, **given)
    assert isinstance(made, Compressed)
    assert made.points[1].cost.macs < made.points[0].cost.macs
    assert made.test is not None
    return made


def divided(labels_of: Any = lambda labels: labels) -> dict[str, Any]:
    found = {}
    for split, number in (("train", 24), ("val", 12), ("test", 12)):
        pixels, labels = images(number, seed=len(found))
        found[split] = (pixels, labels_of(labels))
    return found


def test_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 16), ("val", 4), ("test", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "fields" / split / kind).mkdir(parents=True)
        for name in range(number):
            mask = np.zeros((32, 32), np.uint8)
            mask[int(rng.integers(8, 24)) :] = 1
            pixels = np.eye(3, dtype=np.uint8)[mask] * 150 + rng.integers(0, 99, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "fields" / split / "images" / f"{name}.png")
            Image.fromarray(mask).save(tmp_path / "fields" / split / "masks" / f"{name}.png")
    run = api.finetune(
        "builtin:microsegformer", tmp_path / "fields", weights="none", image_size="32", mask_classes="sky,ground",
        output_dir=str(tmp_path / "run"), **COMMON,
    ).run  # fmt: skip
    made = smaller(run, tmp_path / "out", amount=0.3)
    assert made.points[1].metric == "miou"
    assert made.points[1].interval[0] <= made.points[1].value <= made.points[1].interval[1]


def test_sets_of_labels(tmp_path: Path) -> None:
    """Thresholds are chosen again for the smaller model."""
    data = divided(lambda labels: np.stack([labels > 0, labels == 2], axis=1).astype(np.uint8))
    run = api.finetune(
        "timm:test_resnet", data, weights="none", image_size="32", output_dir=str(tmp_path / "run"), **COMMON
    ).run
    made = smaller(run, tmp_path / "out")
    assert made.points[1].metric == "map"
    assert (Path(made.run) / "thresholds.json").exists()


def test_adapters_are_merged_first(tmp_path: Path) -> None:
    run = api.finetune(
        "timm:test_vit", divided(), weights="none", image_size="32", lora_rank=2,
        output_dir=str(tmp_path / "run"), **COMMON,
    ).run  # fmt: skip
    made = smaller(run, tmp_path / "out", amount=0.2)
    assert restore(made.run, CPU).built.lora is None
    adapted = api.finetune(
        made.run, divided(), image_size="32", lora_rank=2, output_dir=str(tmp_path / "again"), **COMMON
    ).run
    assert restore(adapted, CPU).built.recipe is not None


def test_a_margin_head(tmp_path: Path) -> None:
    run = api.finetune(
        "timm:test_resnet", divided(), weights="none", image_size="32", margin_method="cosface",
        output_dir=str(tmp_path / "run"), **COMMON,
    ).run  # fmt: skip
    made = smaller(run, tmp_path / "out")
    assert restore(made.run, CPU).built.margin == restore(run, CPU).built.margin


def test_an_image_tower(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", steps=0)
    write_folders(tmp_path / "shapes", {"train": 4, "val": 2, "test": 2}, seed=0)
    common = {**COMMON, "data": str(tmp_path / "shapes"), "model": f"hf:{tmp_path / 'clip'}"}
    run = api.finetune(text_head="linear", output_dir=str(tmp_path / "run"), **common).run
    smaller(run, tmp_path / "out", amount=0.2)
    both = api.finetune(text_head="contrastive", output_dir=str(tmp_path / "both"), **common).run
    with pytest.raises(UserError, match="keeps its text tower"):
        api.compress(both, method="factorise", device="cpu")


def test_runs_of_several_tasks_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for split, (pixels, labels) in divided().items():
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                folder = tmp_path / name / split / "xyz"[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number}.png")
    run = api.multitask(
        "timm:test_resnet", tmp_path / "a", tasks=f"b={tmp_path / 'b'}", weights="none", image_size="32",
        output_dir=str(tmp_path / "run"), **COMMON,
    ).run  # fmt: skip
    with pytest.raises(UserError, match="several tasks"):
        api.compress(run, method="factorise", device="cpu")
