"""Batches of images with masks: an image painted by its mask stays painted by it, wherever both are moved.

A pixel of a pure colour is a mixture of no two ids, so the mask must hold its id there; pure black is outside.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.augment import Augment
from warmstart.data.batches import View, deliver, evaluation_batches, training_batches
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.geometry import MaskRules
from warmstart.data.mixing import Mixing
from warmstart.data.order import epoch_order, epoch_windows
from warmstart.data.store_plan import plan_store
from warmstart.errors import UserError
from warmstart.records import Preprocessing

SMALL = Preprocessing((24, 32), (0.5,) * 3, (0.5,) * 3)
MOVED = Augment(rotation=20, crop_pad=0.1, zoom=0.2, flip=0.5, shear=5, erase=0.5, seed=3)


@pytest.fixture
def dataset(write_pairs) -> Dataset:
    return opened(write_pairs({("images", "masks"): 20}))


def opened(root, cache: str = "ram", **values) -> Dataset:
    settings = DataConfig.model_validate({"path": str(root), "cache": cache, "train_ratio": 0.9, **values})
    return open_dataset(settings, 0, store=lambda _: plan_store(settings, SMALL))


def check(images: np.ndarray, masks: np.ndarray, ignore: int, least: float) -> None:
    assert images.shape[:3] == masks.shape
    bright = images.astype(int).sum(-1) == 255
    pure = bright & (images.max(-1) == 255)
    assert pure.mean() > least and (masks[pure] == images.argmax(-1)[pure]).all()
    black = images.max(-1) == 0
    assert (masks[black] == ignore).all()
    assert set(np.unique(masks)) <= {0, 1, 2, ignore}


def test_evaluation_crops_both_alike(dataset):
    batches = list(evaluation_batches(dataset.splits["train"], SMALL, dataset.native, 7, 0))
    assert [len(batch) for batch in batches] == [7, 7, 4]
    for batch in batches:
        assert batch.targets.dtype == np.uint8 and batch.targets.shape == (len(batch), 24, 32)
        check(batch.images, batch.targets, 255, 0.6)
    assert len({batch.targets.tobytes() for batch in batches}) == 3


@pytest.mark.parametrize("ignore", [255, 9])
def test_training_moves_both_alike(dataset, ignore):
    view = View(SMALL, dataset.native, MOVED, masks=MaskRules(ignore))
    (batch,) = deliver(dataset.splits["train"], [np.arange(18)], view, epoch=1)
    check(batch.images, batch.targets, ignore, 0.4)
    assert (batch.targets == ignore).any()
    again, other = (next(deliver(dataset.splits["train"], [np.arange(18)], view, epoch=e)) for e in (1, 2))
    assert (again.targets == batch.targets).all() and (other.targets != batch.targets).any()


def test_without_augmentation_training_equals_evaluation(dataset):
    (plain,) = deliver(
        dataset.splits["train"], [np.arange(18)], View(SMALL, False, Augment(), masks=MaskRules())
    )
    (evaluated,) = evaluation_batches(dataset.splits["train"], SMALL, False, 18, 0)
    assert (plain.targets == evaluated.targets).all() and (plain.images == evaluated.images).all()


def test_images_are_those_of_a_run_without_masks(dataset):
    samples = dataset.splits["train"]
    view = View(SMALL, dataset.native, MOVED, masks=dataset.mask_rules)
    (both,) = deliver(samples, [np.arange(18)], view)
    (alone,) = deliver(replace(samples, masks=None), [np.arange(18)], view)
    assert (both.images == alone.images).all() and (both.keys == alone.keys).all()


def test_workers_batch_size_and_store_change_nothing(write_pairs):
    root = write_pairs({("images", "masks"): 20})

    def everything(cache: str, batch_size: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
        dataset = opened(root, cache)
        view = View(SMALL, dataset.native, MOVED, masks=dataset.mask_rules)
        order = epoch_order(len(dataset.splits["train"]), 3, 5)
        windows = epoch_windows(order, batch_size, 2)
        batches = list(training_batches(dataset.splits["train"], view, windows, 5, workers))
        return np.concatenate([b.images for b in batches]), np.concatenate([b.targets for b in batches])

    images, masks = everything("ram", 4, 0)
    for arguments in (("ram", 4, 1), ("off", 4, 3), ("off", 2, 0), ("ram", 32, 5)):
        found = everything(*arguments)
        assert (found[0] == images).all() and (found[1] == masks).all()


def test_left_and_right_change_places_in_a_mirror_image(dataset):
    samples = dataset.splits["train"]
    rules = MaskRules(255, ((0, 2),))
    plain, swapped = (
        next(deliver(samples, [np.arange(18)], View(SMALL, dataset.native, Augment(flip=1.0), masks=one)))
        for one in (MaskRules(), rules)
    )
    assert (swapped.images == plain.images).all()
    assert (swapped.targets == np.array([2, 1, 0], np.uint8)[plain.targets]).all()


def test_cutmix_moves_boxes_of_masks(dataset):
    samples = dataset.splits["train"]
    mixing = Mixing(0.0, 1.0, 3, 0, lambda epoch: epoch_order(len(samples), 0, epoch))
    plain = View(SMALL, dataset.native, Augment(), masks=MaskRules())
    windows = epoch_windows(epoch_order(len(samples), 0, 0), 5, 1)
    mixed = list(
        training_batches(samples, View(SMALL, dataset.native, Augment(), mixing, MaskRules()), windows, 0, 2)
    )
    before = list(training_batches(samples, plain, windows, 0, 0))
    changed = 0
    for one, other in zip(mixed, before, strict=True):
        assert one.targets.dtype == np.uint8 and one.targets.shape == other.targets.shape
        check(one.images, one.targets, 255, 0.5)
        changed += int((one.targets != other.targets).sum())
    assert changed > 500


def test_ids_beyond_255(write_pairs):
    root = write_pairs({("images", "masks"): 20})
    for path in sorted((root / "masks").iterdir()):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 150).save(path)
    names = ",".join(map(str, range(301)))
    for cache in ("ram", "off"):
        dataset = opened(root, cache, mask_classes=names)
        view = View(SMALL, dataset.native, MOVED, masks=dataset.mask_rules)
        (batch,) = deliver(dataset.splits["train"], [np.arange(18)], view, workers=2)
        assert batch.targets.dtype == np.int32 and dataset.ignore == 65535
        check(batch.images, np.where(batch.targets == 65535, 9, batch.targets // 150), 9, 0.4)
        (batch,) = evaluation_batches(dataset.splits["train"], SMALL, dataset.native, 18, 0)
        assert set(np.unique(batch.targets)) == {0, 150, 300}


def test_masks_of_the_models_own_size_are_untouched(write_pairs):
    root = write_pairs({("images", "masks"): 20}, size=(24, 32))
    dataset = opened(root)
    samples = dataset.splits["train"]
    for view in (View(SMALL, True), View(SMALL, True, Augment(), masks=MaskRules())):
        (batch,) = deliver(samples, [np.arange(18)], view)
        assert (batch.targets == np.stack([samples.masks.read(row)[..., 0] for row in range(18)])).all()
        assert (batch.images.argmax(-1) == batch.targets).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mask_that_broke_since_the_scan_is_named(write_pairs, workers):
    root = write_pairs({("images", "masks"): 20})
    dataset = opened(root, "off")
    samples = dataset.splits["train"]
    (root / "masks" / samples.ids[9].removeprefix("images/")).unlink()
    stream = evaluation_batches(samples, SMALL, dataset.native, 8, workers)
    next(stream)
    with pytest.raises(UserError, match=f"{samples.ids[9]} can no longer be read: file is missing"):
        list(stream)
