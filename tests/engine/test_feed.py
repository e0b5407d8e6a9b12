"""What the loop is fed with where images have masks: the same run with and without kept features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart.engine import train
from warmstart.errors import Interrupted, UserError
from warmstart.run import layout
from warmstart.run.reader import Run

SEGMENTERS = {
    "builtin:microsegformer": ("patch_embed*,block*", "output of norm1, norm2, norm3 and norm4"),
    "smp:Unet/resnet18": ("encoder*", "output of encoder"),
}
STEPS = 6  # of 8, 8 and 4 images, twice


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright fields on dark ground, 20 to train on and 8 to validate."""
    root, rng = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    for split, number in (("train", 20), ("val", 8)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for name in range(number):
            mask = np.zeros((40, 40), np.uint8)
            top, left = rng.integers(0, 20, 2)
            mask[top : top + 20, left : left + 20] = 1
            image = (mask[..., None] * 100 + rng.integers(0, 100, (40, 40, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{name:02}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{name:02}.png")
    return root


@pytest.fixture
def segment(finetune: Callable[..., Run], fields: Path) -> Callable[..., Run]:
    """Train the decoder under a frozen encoder, as many views as epochs."""

    def start(name: str, model: str, **given: Any) -> Run:
        values: dict[str, Any] = {"data": str(fields), "model": model, "freeze": SEGMENTERS[model][0]}
        values |= {"image_size": "32", "mask_classes": "ground,field", "augment": "standard", "lr": 1e-3}
        split = {"train_ratio": None, "val_ratio": None}
        return finetune(name, **{**values, **split, **given})

    return start


@pytest.mark.parametrize("model", SEGMENTERS)
def test_a_frozen_encoder_is_computed_once_per_view(segment: Callable[..., Run], model: str) -> None:
    kept = segment("on", model, feature_cache="on", views=2)
    whole = segment("off", model, feature_cache="off")
    assert whole.resolved["features"]["cut"] is None
    assert SEGMENTERS[model][1] in kept.resolved["features"]["reason"]
    found, wanted = (load_file(run.checkpoint(STEPS) / layout.MODEL) for run in (kept, whole))
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4) for name in wanted)
    for one, other in zip(kept.evals.rows, whole.evals.rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["miou"] == pytest.approx(other["miou"], abs=2e-3)


@pytest.mark.parametrize("cache", ["auto", "ram"])
def test_a_resumed_run_is_the_run_that_was_started(
    segment: Callable[..., Run], interrupt_at: Callable[..., None], tmp_path: Path, cache: str
) -> None:
    """From files of features, or from features and masks that are computed again."""
    given = {"model": "builtin:microsegformer", "feature_cache": "on", "views": 1, "cache": cache}
    straight = segment("straight", **given)
    interrupt_at(4)
    with pytest.raises(Interrupted):
        segment("resumed", **given)
    resumed = Run(train.resume(str(tmp_path / "resumed"), {}))
    for name in (layout.MODEL, layout.STATE_TENSORS):
        files = [run.checkpoint(STEPS) / name for run in (straight, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert resumed.resolved["features"] == straight.resolved["features"]


def test_auto_keeps_maps_that_are_read_sooner_than_computed(segment: Callable[..., Run]) -> None:
    model = "builtin:microsegformer"
    long = {"epochs": 16, "max_steps": 1}
    assert segment("long", model, **long).resolved["features"]["views"] == 4
    short = segment("short", model, epochs=15, max_steps=1).resolved["features"]
    assert "each is used only 3.75 times" in short["reason"]
    first = segment("first", "smp:Unet/resnet18", freeze="encoder.conv1", **long).resolved["features"]
    assert "soon computed" in first["reason"]


def test_compiled_steps_take_one_tensor(segment: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="--compile takes one tensor, and 4 cross the cut"):
        segment("compiled", "builtin:microsegformer", feature_cache="on", compile=True)
