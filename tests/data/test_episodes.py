"""Episodes: functions of (seed, epoch, episode), of classes that never overlap, refused where there are too few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from warmstart.config import io
from warmstart.config.meta_section import MetaConfig
from warmstart.config.schema import Config
from warmstart.data import counters
from warmstart.data.dataset import Dataset, open_dataset
from warmstart.data.episodes import (
    by_classes,
    episode_windows,
    episodes,
    fixed_episodes,
    has_episodes,
    held_out,
)
from warmstart.data.memory import keep
from warmstart.errors import UserError

CLASSES = tuple("abcdefghi")
TARGETS = np.repeat(np.arange(9), 12)


def config(data: str = "", **given: Any) -> Config:
    values = {"meta": "protonet", "meta.way": 3, "meta.query": 4, "meta.episodes": 5, "accumulate": 2}
    place = {"data": data or keep(arrays(12)), "model": "builtin:fashion_cnn", "weights": "none"}
    return io.load({**place, **values, **given}).config


def arrays(num: int, classes: tuple[str, ...] = CLASSES) -> Any:
    images = np.random.default_rng(0).integers(0, 256, (num * len(classes), 8, 8), dtype=np.uint8)
    return {"train": (images, np.repeat(classes, num)), "test": (images[::-1], np.repeat(classes, num)[::-1])}


def opened(settings: Config) -> Dataset:
    return open_dataset(settings.data.model_copy(update={"train_ratio": 1.0, "val_ratio": 0.0}), 0)


def test_held_out_classes_never_overlap_and_follow_from_the_seed() -> None:
    drawn = [held_out(CLASSES, MetaConfig(method="maml", way=3), seed) for seed in range(20)]
    for found in drawn:
        numbers = [number for split in found.values() for number in split]
        assert sorted(numbers) == list(range(9)) and {len(split) for split in found.values()} == {3}
    assert drawn[0] == held_out(CLASSES, MetaConfig(method="maml", way=3), 0)
    assert len({found["test"] for found in drawn}) > 10


def test_classes_are_held_out_by_name_or_number() -> None:
    meta = MetaConfig(method="maml", way=2, val_classes=("c", "h"), test_classes=("3",))
    found = held_out(CLASSES, meta, 0)
    assert found["val"] == (2, 7) and len(found["test"]) == 3 and len(found["train"]) == 4


def test_too_few_classes_and_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="train 1, val 4, test 4"):
        held_out(CLASSES, MetaConfig(method="maml", way=4), 0)
    with pytest.raises(UserError, match="val-classes: no class is named 'z'"):
        held_out(CLASSES, MetaConfig(method="maml", way=2, val_classes=("a", "z")), 0)


def test_an_episode_has_different_images_of_its_classes_class_by_class() -> None:
    meta = MetaConfig(method="maml", way=4, shot=2, query=3)
    drawn = episodes(TARGETS, meta, 1, 0, counters.EPISODE)
    seen = set()
    for _ in range(50):
        indices = next(drawn)
        assert len(set(indices.tolist())) == 20 == meta.num_rows
        support, query = TARGETS[indices[:8]].reshape(4, 2), TARGETS[indices[8:]].reshape(4, 3)
        assert (support == support[:, :1]).all() and (query == support[:, :1]).all()
        assert len(set(support[:, 0].tolist())) == 4
        seen.update(support[:, 0].tolist())
    assert seen == set(range(9))


def test_an_episode_is_a_function_of_seed_epoch_and_number() -> None:
    settings = config()
    flat = [place for window in episode_windows(TARGETS, settings, 3) for place in window]
    alone = [next(_skip(TARGETS, settings, 3, number)) for number in range(5)]
    for number, (place, indices) in enumerate(zip(flat, alone, strict=True)):
        np.testing.assert_array_equal(place % len(TARGETS), indices)
        assert (place // len(TARGETS) == number).all()
    assert [len(window) for window in episode_windows(TARGETS, settings, 3)] == [2, 2, 1]
    assert not np.array_equal(flat[0], episode_windows(TARGETS, settings, 4)[0][0])
    assert not np.array_equal(flat[0], episode_windows(TARGETS, config(seed=1), 3)[0][0])
    longer = episode_windows(TARGETS, config(**{"meta.episodes": 9}), 3)
    np.testing.assert_array_equal(longer[0][0], flat[0])
    np.testing.assert_array_equal(
        fixed_episodes(TARGETS, settings, 2)[1], fixed_episodes(TARGETS, settings, 7)[1]
    )


def _skip(targets: np.ndarray, settings: Config, epoch: int, number: int) -> Any:
    drawn = episodes(targets, settings.meta, settings.train.seed, epoch, counters.EPISODE)
    for _ in range(number):
        next(drawn)
    return drawn


def test_all_images_are_one_pool_and_each_split_has_whole_classes() -> None:
    settings = config()
    data = by_classes(opened(settings), settings, 0)
    found = {split: set(samples.targets.tolist()) for split, samples in data.splits.items()}
    assert set.union(*found.values()) == set(range(9)) and sum(map(len, found.values())) == 9
    assert all(np.bincount(samples.targets).max() == 24 for samples in data.splits.values())
    assert data.facts.sizes == {"train": 72, "val": 72, "test": 72}
    assert {name for name, split in data.divided.items() if split == "val"} == {*data.splits["val"].ids}


def test_classes_that_have_lost_too_many_images_are_drawn_no_more() -> None:
    meta = MetaConfig(method="maml", way=3, shot=1, query=4)
    targets = np.repeat(np.arange(4), [5, 4, 5, 5])
    drawn = next(episodes(targets, meta, 0, 0, counters.EPISODE))
    assert has_episodes(targets, meta) and set(targets[drawn]) == {0, 2, 3}
    assert not has_episodes(targets[5:], meta)


def test_too_few_images_and_several_labels_are_refused() -> None:
    settings = config(**{"meta.query": 24})
    with pytest.raises(UserError, match=r"25 different images of each class \(1 \+ 24\)"):
        by_classes(opened(settings), settings, 0)
    images = np.zeros((40, 8, 8), np.uint8)
    several = keep((images, (np.arange(40)[:, None] % np.array([2, 3, 5]) == 0).astype(np.uint8)))
    settings = config(several)
    with pytest.raises(UserError, match="several labels per image"):
        by_classes(opened(settings), settings, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mixup": 0.2}, "--mixup has no place in episodes"),
        ({"sampler": "balanced"}, "--sampler"),
        ({"class_weights": "balanced"}, "--class-weights"),
        ({"unfreeze": "0:head,1:all"}, "--unfreeze"),
        ({"gradient_checkpointing": True}, "--gradient-checkpointing"),
        ({"margin_method": "cosface"}, "--margin-method"),
        ({"precision": "fp16"}, "--precision fp16"),
        ({"save_as": "episodes.safetensors"}, "--save-as"),
        ({"meta.shot": 0}, "shot"),
        ({"meta.val_classes": "a,b", "meta.test_classes": "b,c"}, "both name 'b'"),
    ],
)
def test_what_has_no_place_in_episodes_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        config(**given)


def test_settings_that_nothing_reads_are_named() -> None:
    told = io.load(
        {"data": keep(arrays(12)), "model": "builtin:fashion_cnn", "weights": "none", "meta.way": 3}
    ).warnings
    assert any("--meta.way has no effect without --meta" in line for line in told)
    given = {"meta": "reptile", "meta.second_order": True, "batch_size": 7}
    told = io.load(
        {"data": keep(arrays(12)), "model": "builtin:fashion_cnn", "weights": "none", **given}
    ).warnings
    assert any("--meta.second-order has no effect with --meta reptile" in line for line in told)
    assert any("--batch-size has no effect with --meta reptile" in line for line in told)
