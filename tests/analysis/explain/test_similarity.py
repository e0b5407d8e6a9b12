"""CKA against its definition in the space of features, its invariances, and what few images do to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tiny_families import images, made, side_of
from warmstart.analysis.explain.similarity import BlockFeatures, compare, debiased_cka, gram, linear_cka


def features(seed: int, num: int = 40, width: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 1.0, (num, width))


def in_feature_space(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, section 3: |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred columns."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_it_is_that_of_the_features() -> None:
    x, y = features(0), features(1, width=5) + features(0)[:, :5]
    assert linear_cka(gram(x), gram(y)) == pytest.approx(in_feature_space(x, y), rel=1e-12)


def test_a_rotation_and_a_factor_change_nothing() -> None:
    x = features(0)
    turn, _ = np.linalg.qr(features(1, 7, 7))
    for measure in (linear_cka, debiased_cka):
        assert measure(gram(x), gram(2.5 * x @ turn + 1)) == pytest.approx(1, abs=1e-12)


def test_of_few_images_only_the_debiased_one_tells_noise_from_likeness() -> None:
    pairs = [(features(2 * k, 30, 2000), features(2 * k + 1, 30, 2000)) for k in range(5)]
    plain = [linear_cka(gram(x), gram(y)) for x, y in pairs]
    fair = [debiased_cka(gram(x), gram(y)) for x, y in pairs]
    assert min(plain) > 0.95 and abs(np.mean(fair)) < 0.1


def test_what_does_not_vary_has_no_likeness() -> None:
    assert np.isnan(linear_cka(gram(np.ones((6, 3))), gram(features(0, 6))))
    assert np.isnan(debiased_cka(gram(features(0, 3)), gram(features(1, 3))))


@pytest.mark.parametrize("family", ["resnet", "vit", "swin"])
def test_only_the_blocks_behind_a_change_differ(family: str) -> None:
    built = made(family)
    tuned = copy.deepcopy(built)
    names = [block.name for block in built.blocks]
    late = len(names) - 2
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in tuned.blocks[late].parameters:
            parameter = tuned.module.get_parameter(name)
            parameter += torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(0.1)
    x = images(24, side_of(family))
    sides = BlockFeatures(built), BlockFeatures(tuned)
    for side in sides:
        side.add(x[:16])
        side.add(x[16:])
    found = compare(*sides, (built, tuned))
    assert found.blocks == found.other_blocks == tuple(names[:-1]) and found.num_samples == 24
    rows = found.rows()
    for number, row in enumerate(rows):
        if number < late:
            assert row["cka"] == pytest.approx(1, abs=1e-9) and row["weights_moved"] == 0
        else:
            assert row["cka"] < 1 - 1e-6
        assert (row["weights_moved"] > 0) == (number == late)
