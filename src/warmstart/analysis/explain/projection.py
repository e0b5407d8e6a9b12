"""Embeddings as points on a plane: PCA, t-SNE, UMAP. Shapes: N images, D features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import UserError, closest, listing

PROJECTIONS = ("pca", "tsne", "umap")
_LARGEST_PERPLEXITY, _MOST_COMPONENTS = 30.0, 50
_FEWEST = 5  # images that have neighbours worth drawing

Points = NDArray[np.float64]


def check_projections(names: tuple[str, ...]) -> None:
    """UserError for a name that is not known."""
    for name in names:
        if name not in PROJECTIONS:
            raise UserError(
                f"--projection {name} is not known", listing(PROJECTIONS), closest(name, PROJECTIONS)
            )


def project(embeddings: NDArray[np.float32], name: str, seed: int = 0) -> tuple[Points, str]:
    """(N, 2) of (N, D), and what was done in words. The same numbers give the same points.

    Raises:
        UserError: too few images, numbers that are not finite, or UMAP without its package.
    """
    if len(embeddings) < _FEWEST:
        raise UserError(f"an embedding map of {len(embeddings)} images", f"{_FEWEST} or more")
    if not np.isfinite(embeddings).all():
        raise UserError("the embeddings hold values that are not finite", "weights that give finite outputs")
    points, shares = _principal(embeddings)
    if name == "pca":
        first, second = (*shares[:2], 0.0)[:2]
        return points[:, :2], f"PCA: {first:.0%} and {second:.0%} of the variance"
    if name == "tsne":
        return _tsne(points[:, :_MOST_COMPONENTS], seed)
    return _umap(points[:, :_MOST_COMPONENTS], seed)


def _principal(embeddings: NDArray[np.float32]) -> tuple[Points, Points]:
    """(N, at least 2) of principal components, and their shares of the variance; the largest loading is positive."""
    centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
    left, lengths, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    points = left * lengths * np.where(signs == 0, 1, signs)
    total = (lengths**2).sum()
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    return points, lengths**2 / (total or 1.0)


def _tsne(points: Points, seed: int) -> tuple[Points, str]:
    """van der Maaten & Hinton 2008."""
    from sklearn.manifold import TSNE

    perplexity = min(_LARGEST_PERPLEXITY, (len(points) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca" if points[:, 1].any() else "random", random_state=seed)
    return made.fit_transform(points.astype(np.float32)).astype(
        np.float64
    ), f"t-SNE, perplexity {perplexity:.3g}"


def _umap(points: Points, seed: int) -> tuple[Points, str]:
    """McInnes et al. 2018."""
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(
            "--projection umap needs the package umap-learn",
            "pip install 'warmstart[umap]'",
            "or --projection pca,tsne",
        ) from None
    neighbours = min(15, len(points) - 1)
    made = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(
        made.fit_transform(points.astype(np.float32)), np.float64
    ), f"UMAP, {neighbours} neighbours"
