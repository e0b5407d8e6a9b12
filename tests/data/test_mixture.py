"""Several data sets in one training: how many places each gets, which images take them, and what they are called."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from warmstart.config.mix_values import parse_mix, share_at
from warmstart.config.schema import Config, TaskConfig
from warmstart.data.joined import joined, same_images
from warmstart.data.mixture import Mixture, Part, all_classes, balanced_sample, class_numbers, renumbered
from warmstart.data.order import balanced_order, epoch_order
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.errors import UserError
from warmstart.tasks.task import make_task


def samples(num: int, seed: int, size: int = 4, num_classes: int = 3) -> Samples:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (num, size, size, 1), dtype=np.uint8)
    targets = (np.arange(num) % num_classes).astype(np.int64)
    return Samples(tuple(f"{n}.png" for n in range(num)), targets, ArrayPixels(pixels))


def mixture(*words: str, num: int = 40, sizes: tuple[int, ...] = (25, 10)) -> Mixture:
    parts = [
        Part(f"P{n}", samples(sizes[n], n + 1), True, partial(share_at, parse_mix(word)))
        for n, word in enumerate(words)
    ]
    return Mixture.of(samples(num, 0), True, parts)


def origins(found: Mixture, order: np.ndarray) -> list[int]:
    """How many places of an order are of --data and of each part."""
    ends = np.cumsum([found.num_own, *(len(part.samples) for part in found.parts)])
    which = np.searchsorted(ends, order % len(found.samples), side="right")
    return np.bincount(which, minlength=len(ends)).tolist()


@pytest.mark.parametrize("balanced", [False, True])
def test_an_epoch_has_as_many_places_as_data_has_images_in_the_shares_of_its_epoch(balanced: bool) -> None:
    found = mixture("A=.5:2epochs,A=.25", "B=.1")
    for epoch, numbers in ((0, [16, 20, 4]), (1, [16, 20, 4]), (2, [26, 10, 4])):
        order = found.order(balanced, 7, epoch)
        assert len(order) == 40 and origins(found, order) == numbers == found.numbers(epoch)
        assert len(set(order.tolist())) == 40  # no place twice: a repeat has a number of its own


def test_shares_that_do_not_divide_keep_the_total() -> None:
    found = mixture("A=.333", "B=.333", num=10)
    assert sum(found.numbers(0)) == 10 and sorted(found.numbers(0)) == [3, 3, 4]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = mixture("A=.5"), mixture("A=.5")
    assert np.array_equal(first.order(False, 1, 3), second.order(False, 1, 3))
    assert not np.array_equal(first.order(False, 1, 3), first.order(False, 1, 4))
    assert not np.array_equal(first.order(False, 1, 3), first.order(False, 2, 3))


def test_without_a_share_the_order_is_that_of_data_alone() -> None:
    """Two stages: in the second one nothing tells the run from one that never mixed."""
    found = mixture("A=1:1epochs,A=0")
    assert origins(found, found.order(False, 5, 0)) == [0, 40]
    assert np.array_equal(found.order(False, 5, 1), epoch_order(40, 5, 1))
    own = balanced_order(found.samples.targets[:40], 5, 1)
    assert np.array_equal(found.order(True, 5, 1) % len(found.samples), own % 40)


def test_a_small_data_set_repeats_its_images_evenly() -> None:
    found = mixture("A=.5", sizes=(6,))
    order = found.order(False, 0, 0)
    rows = order[order % len(found.samples) >= 40] % len(found.samples)
    counts = np.bincount(rows - 40, minlength=6)
    assert counts.sum() == 20 and set(counts.tolist()) == {3, 4}


def test_balanced_places_are_balanced_within_each_data_set() -> None:
    found = mixture("A=.3", num=40)
    order = found.order(True, 0, 0) % len(found.samples)
    for rows in (order[order < 40], order[order >= 40]):
        counts = np.bincount(found.samples.targets[rows], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_pixels_targets_and_ids_come_from_their_own_data_set() -> None:
    found = mixture("A=.5", "B=.1")
    assert len(found.samples) == 75 and len(set(found.samples.keys.tolist())) == 75
    for row, part, index in ((3, None, 3), (40 + 7, 0, 7), (40 + 25 + 2, 1, 2)):
        source = samples(40, 0) if part is None else found.parts[part].samples
        assert np.array_equal(found.samples.pixels.read(row), source.pixels.read(index))
        assert found.samples.targets[row] == source.targets[index]
    assert np.array_equal(found.samples.keys[:40], samples(40, 0).keys)  # augmented as without a mixture


def test_two_sizes_are_not_one_native_size() -> None:
    parts = [Part("A", samples(5, 1, size=8), True, lambda _: 0.5)]
    assert not Mixture.of(samples(10, 0), True, parts).native
    assert mixture("A=.5").native


def test_a_replayed_sample_is_balanced_and_fixed() -> None:
    targets = np.array([0] * 50 + [1] * 8 + [2] * 2, dtype=np.int64)
    rows = balanced_sample(targets, 12, 3)
    assert np.bincount(targets[rows]).tolist() == [5, 5, 2] and len(set(rows.tolist())) == 12
    assert np.array_equal(rows, balanced_sample(targets, 12, 3))
    assert not np.array_equal(rows, balanced_sample(targets, 12, 4))
    assert len(balanced_sample(targets, 1000, 3)) == 60


def test_classes_by_name_by_union_and_by_mapping() -> None:
    ours = ("cat", "dog")
    assert class_numbers(("dog", "cat"), ours, (), "--mix A").tolist() == [1, 0]
    union = all_classes(ours, {"A": ("cow", "dog"), "B": ("ant",)}, "union")
    assert union == ("cat", "dog", "cow", "ant")
    assert class_numbers(("cow", "dog"), union, "union", "--mix A").tolist() == [2, 1]
    mapping = (("kitty", "cat"), ("doggy", "dog"))
    assert class_numbers(("doggy", "kitty"), ours, mapping, "--mix A").tolist() == [1, 0]
    for found, given in ((("cow", "dog"), ()), (("dog",), ()), (("doggy", "kity"), mapping)):
        with pytest.raises(UserError, match="other classes than the training") as error:
            class_numbers(found, ours, given, "--mix A")
        assert found[0] in str(error.value) and "cat" in str(error.value)


def test_targets_get_the_numbers_of_the_training() -> None:
    single = renumbered(samples(4, 0), np.array([2, 0, 3]), 4)
    assert single.targets.tolist() == [2, 0, 3, 2]
    sets = Samples(("a",), np.array([[1, 0, 1]], np.uint8), samples(1, 0).pixels)
    assert renumbered(sets, np.array([2, 0, 3]), 4).targets.tolist() == [[0, 0, 1, 1]]


def test_images_that_two_data_sets_share_are_found() -> None:
    one, other = samples(6, 0), samples(6, 9)
    shared = ArrayPixels(np.concatenate([other.pixels.array, one.pixels.array[[4, 1]]]))  # type: ignore[attr-defined]
    others = Samples(tuple("abcdefgh"), np.zeros(8, np.int64), shared)
    assert same_images(one, others).tolist() == [1, 4]
    assert same_images(one, other).tolist() == []
    row = joined([other, one], tuple(f"{n}" for n in range(12)))
    assert same_images(row, one).tolist() == [6, 7, 8, 9, 10, 11]
    assert same_images(one, row).tolist() == [0, 1, 2, 3, 4, 5]


def test_places_by_class_are_those_that_epochs_have() -> None:
    found = mixture("P=.5", sizes=(10,))
    classes = ("a", "b", "c")
    order = np.concatenate([found.order(False, 0, epoch) for epoch in range(30)]) % len(found.samples)
    shown = np.bincount(found.samples.targets[order], minlength=3) / 30
    assert [*found.places_by_class(classes, 30).values()] == pytest.approx(shown.tolist(), abs=0.5)
    with pytest.raises(UserError, match="name the weights"):
        mixture("P=.5:2epochs").places_by_class(classes, 3)
    assert mixture("P=.5:2epochs").places_by_class(classes, 2)


def test_balanced_weights_of_labels_know_what_is_mixed_in() -> None:
    def labels(num: int, num_first: int, seed: int) -> Samples:
        first = np.arange(num) < num_first
        return samples(num, seed).with_targets(np.column_stack((first, ~first)).astype(np.uint8))

    own, other = labels(100, 30, 0), labels(200, 180, 1)
    part = Part("P", other, True, partial(share_at, parse_mix("P=.5")))
    counts = Mixture.of(own, True, [part]).places_by_class(("x", "y"), 2)
    assert counts == {"x": 15 + 45, "y": 35 + 5}
    config = Config(task=TaskConfig(class_weights="balanced"))
    task = make_task(config, ("x", "y"), own.targets, counts)
    assert task.class_weights == pytest.approx((40 / 60, 60 / 40))
