from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from warmstart.data.splits import group_split, strata, stratified_limit, stratified_split
from warmstart.errors import UserError

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.mark.parametrize("sizes", [[10, 10], [3, 3, 3], [1, 2, 50], [7, 11, 13, 17], [1], [100, 3]])
@pytest.mark.parametrize(
    "shares", [SHARES, {"train": 0.7, "val": 0.3}, {"train": 0.5, "val": 0.0, "test": 0.5}]
)
def test_every_item_is_in_exactly_one_part(sizes, shares):
    targets = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = stratified_split(targets, shares, seed=3)
    assert list(parts) == list(shares)
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(targets)))
    num_positive = sum(share > 0 for share in shares.values())
    for label, size in enumerate(sizes):
        for name, share in shares.items():
            count = int((targets[parts[name]] == label).sum())
            if share == 0:
                assert count == 0
            elif size >= num_positive:
                assert count >= 1
                assert abs(count - share * size) <= 2  # rounding, and one lent to a part that had none


def test_round_shares_are_exact():
    targets = np.repeat([0, 1, 2], 30)
    parts = stratified_split(targets, SHARES, seed=0)
    counts = {name: np.bincount(targets[indices]).tolist() for name, indices in parts.items()}
    assert counts == {"train": [24] * 3, "val": [3] * 3, "test": [3] * 3}
    assert all((np.diff(indices) > 0).all() for indices in parts.values())


def test_roundings_of_many_classes_do_not_favour_one_part():
    targets = np.repeat(np.arange(30), 5)  # quotas 4, .5, .5
    parts = stratified_split(targets, SHARES, seed=0)
    assert abs(len(parts["val"]) - len(parts["test"])) <= 6


def test_lone_images_go_to_the_largest_part():
    assert stratified_split(np.array([0, 1]), SHARES, seed=0)["train"].tolist() == [0, 1]


def test_the_seed_decides():
    targets = np.repeat([0, 1], 50)
    first, again, other = (stratified_split(targets, SHARES, seed)["val"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.array_equal(first, other)
    assert first.tolist() == [2, 4, 11, 16, 33, 61, 62, 69, 97, 99]  # recorded runs depend on it


def test_one_class_does_not_move_another():
    few, many = np.repeat([0, 1], [20, 10]), np.repeat([0, 1], [20, 90])
    zeros = [stratified_split(t, SHARES, 5)["val"] for t in (few, many)]
    assert zeros[0][zeros[0] < 20].tolist() == zeros[1][zeros[1] < 20].tolist()


@pytest.mark.parametrize("limit", [0.1, 0.33, 0.999, 1, 2, 3, 17, 99, 100, 1000])
def test_a_limit_has_its_number_and_proportions(limit):
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [70, 25, 5]))
    kept = stratified_limit(targets, limit, seed=4)
    wanted = round(limit * 100) if limit < 1 else min(limit, 100)
    assert len(kept) == wanted == len(set(kept.tolist()))
    assert (np.diff(kept) > 0).all()
    if wanted >= 3:
        counts = np.bincount(targets[kept], minlength=3)
        assert (counts >= 1).all()
        assert (np.abs(counts - wanted * np.array([0.7, 0.25, 0.05])) <= 1.5).all()


def test_a_small_share_keeps_every_class():
    targets = np.repeat(np.arange(10), 4)
    assert np.bincount(targets[stratified_limit(targets, 0.01, 0)]).tolist() == [1] * 10


def test_limits_are_nested():
    targets = np.repeat([0, 1], 100)
    small, large = (set(stratified_limit(targets, limit, 0).tolist()) for limit in (20, 80))
    assert small < large


def test_the_hash_seed_of_python_does_not_matter():
    code = (
        "import numpy as np; from warmstart.data.splits import stratified_split as s;"
        "print(s(np.repeat([0, 1], 9), {'b': .5, 'a': .5}, 1))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def grouped(num_groups: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and groups of 1 to 20 images; most images of a group are of one class."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 21, num_groups)
    groups = np.repeat(rng.permutation(1000)[:num_groups], sizes)
    own = np.repeat(rng.integers(0, num_classes, num_groups), sizes)
    targets = np.where(rng.random(len(groups)) < 0.8, own, rng.integers(0, num_classes, len(groups)))
    shuffled = rng.permutation(len(groups))
    return targets[shuffled].astype(np.int64), groups[shuffled].astype(np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_divided_and_the_shares_are_near(seed):
    targets, groups = grouped(120, 4, seed)
    parts = group_split(targets, groups, SHARES, seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(targets)))
    held = {name: set(groups[indices].tolist()) for name, indices in parts.items()}
    assert not held["train"] & held["val"] | held["train"] & held["test"] | held["val"] & held["test"]
    for name, share in SHARES.items():
        assert abs(len(parts[name]) / len(targets) - share) < 0.01
        for label in range(4):
            total = (targets == label).sum()
            assert abs((targets[parts[name]] == label).sum() / total - share) < 0.05
    again, other = group_split(targets, groups, SHARES, seed), group_split(targets, groups, SHARES, seed + 1)
    assert (again["val"] == parts["val"]).all()
    assert not np.array_equal(other["val"], parts["val"])
    assert (np.diff(parts["train"]) > 0).all()


def test_groups_of_one_image_are_split_like_images():
    targets = np.repeat([0, 1, 2], 30)
    parts = group_split(targets, np.arange(90), SHARES, 0)
    counts = {name: np.bincount(targets[indices]).tolist() for name, indices in parts.items()}
    assert counts == {"train": [24] * 3, "val": [3] * 3, "test": [3] * 3}


def test_few_and_uneven_groups():
    """One group holds nearly everything; the others still make a val and a test split."""
    groups = np.array([7] * 90 + [8] * 6 + [9] * 4)
    targets = np.arange(100) % 2
    parts = group_split(targets, groups, SHARES, 0)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 90, "val": 6, "test": 4}
    equal = group_split(targets[:30], np.repeat([0, 1, 2], 10), SHARES, 0)
    assert {name: len(indices) for name, indices in equal.items()} == {"train": 10, "val": 10, "test": 10}
    with pytest.raises(UserError, match=r"96 images are in 2 groups, too few for train, val, test"):
        group_split(targets[:96], groups[:96], SHARES, 0)
    with pytest.raises(UserError, match=r"90 images are in 1 groups"):
        group_split(targets[:90], groups[:90], {"train": 0.9, "val": 0.1}, 0)


def test_label_sets_are_strata():
    targets = np.array([[1, 1, 0]] * 12 + [[0, 1, 0]] * 30 + [[1, 0, 1]] * 3 + [[0, 0, 0]] * 2, np.uint8)
    codes = strata(targets)
    assert [len(set(codes[rows].tolist())) for rows in (slice(0, 12), slice(12, 42), slice(42, 45))] == [
        1
    ] * 3
    assert set(codes[42:45].tolist()) == {2}  # three images of a and c: c is the rarer label
    assert len(set(codes.tolist())) == 4
    assert len(set(strata(np.eye(20, dtype=np.uint8)).tolist())) == 20
    assert strata(np.array([3, 1])).tolist() == [3, 1]


def test_multi_hot_targets_are_split_and_limited_by_label():
    rng = np.random.default_rng(0)
    targets = (rng.random((1000, 12)) < np.linspace(0.02, 0.5, 12)).astype(np.uint8)
    parts = stratified_split(targets, SHARES, 0)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))
    for name, share in SHARES.items():
        found = targets[parts[name]].sum(axis=0) / targets.sum(axis=0)
        assert np.abs(found - share).max() < 0.1
        assert abs(len(parts[name]) - 1000 * share) < 10
    assert len(stratified_limit(targets, 100, 0)) == 100


def test_what_is_fixed_stays_and_only_the_rest_is_divided():
    targets = np.repeat([0, 1], 60)
    fixed = np.tile([0, 1, 2, -1, -1, -1], 20)
    parts = stratified_split(targets, SHARES, 0, fixed)
    for number, indices in enumerate(parts.values()):
        assert set(np.flatnonzero(fixed == number).tolist()) <= set(indices.tolist())
    new = {name: int((fixed[indices] < 0).sum()) for name, indices in parts.items()}
    assert new == {"train": 48, "val": 6, "test": 6}
    assert (
        stratified_split(targets, SHARES, 0, np.full(120, -1))["val"]
        == stratified_split(targets, SHARES, 0)["val"]
    ).all()


def test_what_is_new_in_a_known_group_joins_it():
    targets, groups = grouped(60, 3, 0)
    before = group_split(targets, groups, SHARES, 0)
    number = np.full(len(targets), -1)
    for part, indices in enumerate(before.values()):
        number[indices] = part
    rng = np.random.default_rng(0)
    fixed = np.where((rng.random(len(targets)) < 0.7) & (groups % 5 > 0), number, -1)
    parts = group_split(targets, groups, SHARES, 1, fixed)
    known = np.isin(groups, groups[fixed >= 0])
    for part, indices in enumerate(parts.values()):
        assert (number[indices][known[indices]] == part).all()
    held = [set(groups[indices].tolist()) for indices in parts.values()]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    assert all((~known[indices]).any() for indices in parts.values()), "new groups are divided"


def test_a_new_group_beside_known_ones_needs_no_company():
    groups, targets = np.array([1] * 8 + [2] * 2 + [3] * 2 + [4]), np.arange(13) % 2
    fixed = np.array([0] * 8 + [1] * 2 + [2] * 2 + [-1])
    parts = group_split(targets, groups, SHARES, 0, fixed)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 9, "val": 2, "test": 2}
