"""Points on a plane: PCA is scikit-learn's, t-SNE keeps neighbours, the same numbers give the same points."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA

from warmstart.analysis.explain.projection import check_projections, project
from warmstart.errors import UserError


def groups(num: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Three groups far apart, in twelve dimensions."""
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(3), num)
    return (np.eye(12)[numbers] * 20 + rng.normal(size=(3 * num, 12))).astype(np.float32), numbers


def test_pca_is_that_of_scikit_learn() -> None:
    embeddings, _ = groups()
    points, words = project(embeddings, "pca")
    reference = PCA(2).fit(embeddings.astype(np.float64))
    wanted = reference.transform(embeddings)
    signs = np.sign((points * wanted).sum(axis=0))
    np.testing.assert_allclose(points, wanted * signs, atol=1e-4)
    first, second = reference.explained_variance_ratio_
    assert words == f"PCA: {first:.0%} and {second:.0%} of the variance"


def test_tsne_keeps_neighbours_and_repeats_itself() -> None:
    embeddings, numbers = groups()
    points, words = project(embeddings, "tsne")
    assert words == f"t-SNE, perplexity {59 / 3:.3g}"
    apart = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * len(points))
    assert (numbers[apart.argmin(axis=1)] == numbers).all()
    assert np.array_equal(project(embeddings, "tsne")[0], points)


@pytest.mark.parametrize("name", ["pca", "tsne"])
def test_images_that_are_all_alike_are_one_point(name: str) -> None:
    points, _ = project(np.ones((6, 4), np.float32), name)
    assert np.isfinite(points).all() and points.shape == (6, 2)


def test_one_number_per_image_is_a_line() -> None:
    points, _ = project(np.arange(6, dtype=np.float32)[:, None], "pca")
    assert (points[:, 1] == 0).all() and (np.diff(points[:, 0]) > 0).all()


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="an embedding map of 4 images"):
        project(np.ones((4, 3), np.float32), "pca")
    with pytest.raises(UserError, match="not finite"):
        project(np.full((9, 3), np.nan, np.float32), "pca")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"(?s)needs the package umap-learn.*warmstart\[umap\]"):
        project(groups()[0], "umap")
    with pytest.raises(UserError, match=r"(?s)tnse is not known.*Did you mean 'tsne'"):
        check_projections(("pca", "tnse"))
