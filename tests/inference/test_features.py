"""Features of a frozen prefix: what a run without them computes, computed once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from warmstart import api
from warmstart.config.schema import ModelConfig
from warmstart.data.augment import Augment
from warmstart.data.batches import View, deliver
from warmstart.data.geometry import MaskRules
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.data.sources import open_source
from warmstart.errors import Interrupted, UserError
from warmstart.inference import features
from warmstart.inference.cut import Cut, Slot, prefix_features
from warmstart.inference.features import Prefix, feature_batches
from warmstart.inference.inputs import InputBuffer
from warmstart.models.build import build
from warmstart.run import layout
from warmstart.run.reader import Run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def samples(overlapping: Path) -> Samples:
    return open_source(overlapping).splits["all"]


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """fashion_cnn up to its second block."""
    built = build(
        ModelConfig(name="builtin:fashion_cnn", weights="none"), {"image_size": (16, 16)}, ("a", "b"), 0
    )
    cut = Cut(("conv1",), (Slot((32, 16, 16), True),), "bn1", False, False)
    return Prefix(
        built.module, cut, ("model",), True, torch.device("cpu"), None, 0, tmp_path / "cache" / "features"
    )


def view_of(augment: Augment | None = None) -> View:
    built = build(
        ModelConfig(name="builtin:fashion_cnn", weights="none"), {"image_size": (16, 16)}, ("a", "b"), 0
    )
    return View(built.preprocessing, True, augment)


def test_a_table_holds_what_the_prefix_gives(samples: Samples, prefix: Prefix) -> None:
    view = view_of(Augment(rotation=20))
    table = prefix.table(samples, view, 3, "")
    places = np.array([5, 41, 0, 5 + len(samples)])  # the last is image 5 again
    (batch,) = feature_batches(table, samples, [places])
    (pixels,) = deliver(samples, [places % len(samples)], view, epoch=3)
    expected = prefix_features(
        prefix.module, prefix.cut, InputBuffer(view.preprocessing, prefix.device, True)(pixels.images)
    )
    assert torch.allclose(prefix.to_tensor(batch.images), expected, atol=1e-6)
    assert (batch.targets == pixels.targets).all() and batch.indices.tolist() == [5, 41, 0, 5]
    other = prefix.table(samples, view, 4, "")
    assert not np.array_equal(other.take(np.arange(3)), table.take(np.arange(3))), (
        "another epoch, another view"
    )


def test_tables_built_twice_are_equal_to_the_bit_and_files_are_shared(
    samples: Samples, prefix: Prefix
) -> None:
    view = view_of()
    first = prefix.table(samples, view, 0, "").take(np.arange(len(samples)))
    assert prefix.folder is not None
    (file,) = prefix.folder.iterdir()
    content = file.read_bytes()
    stamp = file.stat().st_ino
    # Without augmentation no epoch counts.
    again = prefix.table(samples, view, 7, "").take(np.arange(len(samples)))
    assert file.stat().st_ino == stamp and (again == first).all()
    file.unlink()
    prefix.table(samples, view, 0, "")
    assert file.read_bytes() == content


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory for 12 images at once; gives the sizes that failed."""
    failed: list[int] = []

    def limited(module: Any, cut: Cut, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 12:
            failed.append(len(images))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
        return prefix_features(module, cut, images)

    monkeypatch.setattr(features, "prefix_features", limited)
    return failed


def test_out_of_memory_computes_fewer_at_once_under_another_name(
    samples: Samples,
    prefix: Prefix,
    room: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was computed with more images at once is not mixed with what came after, nor taken for it."""
    everything = np.arange(len(samples))
    with monkeypatch.context() as patch:
        patch.setattr(features, "prefix_features", prefix_features)
        whole = prefix.table(samples, view_of(), 0, "").take(everything)
    assert prefix.folder is not None
    (file,) = prefix.folder.iterdir()
    file.unlink()
    with caplog.at_level(logging.WARNING, "warmstart"):
        parts = prefix.table(samples, view_of(), 0, "").take(everything)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert room == [42, 21] and prefix.at_once.limit == 11 and "at most 11 at once" in caplog.text
    (other,) = prefix.folder.iterdir()
    assert other.name != file.name
    assert (prefix.table(samples, view_of(), 0, "").take(everything) == parts).all()


@pytest.mark.parametrize("content", [b"", b"nonsense", "cut"])
def test_a_damaged_file_is_computed_again(
    samples: Samples, prefix: Prefix, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    first = prefix.table(samples, view_of(), 0, "").take(np.arange(len(samples)))
    assert prefix.folder is not None
    (file,) = prefix.folder.iterdir()
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING, "warmstart"):
        again = prefix.table(samples, view_of(), 0, "").take(np.arange(len(samples)))
    assert (again == first).all() and "computed again" in caplog.text


@pytest.fixture
def masked(samples: Samples) -> Samples:
    masks = np.random.default_rng(1).integers(0, 3, (len(samples), 16, 16, 1), dtype=np.uint8)
    labels = np.ones((len(samples), 3), np.uint8)
    return replace(samples, targets=labels, masks=ArrayPixels(masks))


def test_masks_lie_beside_the_features_of_their_view(masked: Samples, prefix: Prefix) -> None:
    view = replace(view_of(Augment(rotation=20, flip=0.5)), masks=MaskRules(ignore=9, flip_pairs=((0, 1),)))
    places = np.array([5, 41, 0, 5 + len(masked)])
    for epoch in (2, 3):
        (batch,) = feature_batches(prefix.table(masked, view, epoch, ""), masked, [places])
        (pixels,) = deliver(masked, [places % len(masked)], view, epoch=epoch)
        assert (batch.targets == pixels.targets).all() and (batch.targets == 9).any()
    assert prefix.folder is not None
    contents = {file.name: file.read_bytes() for file in prefix.folder.iterdir()}
    assert len(contents) == 2
    shutil.rmtree(prefix.folder)
    for epoch in (3, 2):
        prefix.table(masked, view, epoch, "")
    assert {file.name: file.read_bytes() for file in prefix.folder.iterdir()} == contents
    assert masked.masks is not None
    other = np.stack([masked.masks.read(index) for index in range(len(masked))])
    other[7, 0, 0] ^= 1
    prefix.table(replace(masked, masks=ArrayPixels(other)), view, 2, "")
    assert len(list(prefix.folder.iterdir())) == 3, "another mask, another file"


Finetune = Callable[..., Run]


@pytest.fixture
def finetune(small_settings: dict[str, Any], tmp_path: Path) -> Finetune:
    def start(name: str, **given: Any) -> Run:
        values = {**small_settings, "freeze": "conv*", "epochs": 4, "output_dir": str(tmp_path / name)}
        return Run(Path(api.finetune(**{**values, **given}).run))  # type: ignore[union-attr]

    return start


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    step = run.pointer(layout.LAST)
    assert step is not None
    return load_file(run.checkpoint(step) / layout.MODEL)


@pytest.mark.parametrize(
    "given", [{}, {"ema": 0.7, "sampler": "balanced"}, {"accumulate": 2, "cache": "off"}]
)
def test_a_run_with_features_is_the_run_without(finetune: Finetune, given: dict[str, Any]) -> None:
    given = {"augment": "none", "dropout": 0.0, **given}
    runs = {mode: finetune(mode, feature_cache=mode, **given) for mode in ("on", "off")}
    assert (
        runs["on"].resolved["features"]["cut"] is not None and runs["off"].resolved["features"]["cut"] is None
    )
    on, off = last_weights(runs["on"]), last_weights(runs["off"])
    assert all(torch.allclose(on[name], off[name], rtol=1e-3, atol=1e-5) for name in off)
    pairs = zip(runs["on"].evals.rows, runs["off"].evals.rows, strict=True)
    assert all(a["loss"] == pytest.approx(b["loss"], rel=1e-3) for a, b in pairs)


def test_views_repeat(finetune: Finetune) -> None:
    run = finetune("two", feature_cache="on", augment="light", views=2)
    assert run.resolved["features"]["views"] == 2
    assert "2 augmented views of each image" in (run.path / layout.LOG).read_text()


def test_auto_keeps_features_where_that_saves_work(finetune: Finetune) -> None:
    assert finetune("saves", augment="none").resolved["features"]["cut"]["first"] == "fc1"
    short = finetune("short", augment="light", epochs=2).resolved["features"]
    assert short["cut"] is None and short["reason"] == "2 epochs of 2 views repeat nothing"
    early = finetune("early", freeze="conv1", augment="none").resolved["features"]
    assert "larger than the images" in early["reason"]
    free = finetune("free", freeze="fc1", augment="none").resolved["features"]
    assert free["reason"] == "the first block trains"


def test_what_cannot_be_had_is_refused(finetune: Finetune) -> None:
    with pytest.raises(UserError, match="--feature-cache on: the first block trains"):
        finetune("free", freeze="fc1", feature_cache="on")
    with pytest.raises(UserError, match="mixed images have no features"):
        finetune("mixed", mixup=0.2, feature_cache="on")


def test_a_resumed_run_is_the_run_that_was_started(
    finetune: Finetune, interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    given = {"feature_cache": "on", "augment": "light", "views": 2, "dropout": 0.5}
    straight = finetune("straight", **given)
    interrupt_at(5)
    with pytest.raises(Interrupted):
        finetune("resumed", **given)
    resumed = Run(Path(api.resume(str(tmp_path / "resumed")).run))
    step = straight.pointer(layout.LAST)
    assert step is not None and resumed.pointer(layout.LAST) == step
    for name in (layout.MODEL, layout.STATE_TENSORS):
        assert (straight.checkpoint(step) / name).read_bytes() == (
            resumed.checkpoint(step) / name
        ).read_bytes()
    assert (
        json.loads((resumed.path / layout.RESOLVED).read_text())["features"] == straight.resolved["features"]
    )


def test_a_run_whose_features_did_not_fit_is_resumed_to_the_bit(
    finetune: Finetune, room: list[int], interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    given = {"feature_cache": "on", "augment": "light", "views": 2, "dropout": 0.5, "cache": "ram"}
    straight = finetune("straight", **given)
    assert len(room) == 1, "once in the whole run"
    interrupt_at(5)
    with pytest.raises(Interrupted):
        finetune("resumed", **given)
    room.clear()
    resumed = Run(Path(api.resume(str(tmp_path / "resumed")).run))
    assert room == [], "the limit is part of the state"
    for name in (layout.MODEL, layout.STATE_TENSORS):
        assert (straight.checkpoint(12) / name).read_bytes() == (resumed.checkpoint(12) / name).read_bytes()


def test_a_dry_run_says_what_would_be_kept_and_keeps_nothing(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    values = {
        **small_settings,
        "freeze": "conv*",
        "epochs": 4,
        "augment": "none",
        "cache_dir": str(tmp_path / "c"),
    }
    result = api.finetune(**values, dry_run=True)
    record = result.to_json()
    assert record["resolved"]["features"]["cut"]["first"] == "fc1"
    assert record["cost"]["seconds_per_feature_image"] > 0
    assert not (tmp_path / "c" / "features").exists()
