"""separation.py: against the scatter matrices written out, and seen by the same pass that computes outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from warmstart.data.batches import Batch
from warmstart.inference.cut import Tail, prefix_features
from warmstart.inference.find_cut import find_cut
from warmstart.inference.predictor import predict_outputs
from warmstart.inference.separation import ClassSums, separation


def _embeddings(num_classes: int, num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.arange(num) % num_classes
    return rng.normal(size=(num, 4)) + 2 * rng.normal(size=(num_classes, 4))[targets] + 5, targets


def _sums(x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    one_hot = np.eye(num_classes)[y]
    return one_hot.sum(axis=0), one_hot.T @ x, one_hot.T @ (x**2).sum(axis=1)


def test_the_ratio_is_that_of_the_traces_of_the_scatter_matrices() -> None:
    x, y = _embeddings(3)
    within, between = np.zeros((4, 4)), np.zeros((4, 4))
    for k in range(3):
        rows = x[y == k]
        within += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
        offset = rows.mean(0) - x.mean(0)
        between += len(rows) * np.outer(offset, offset)
    found = separation(*_sums(x, y, 3), ("a", "b", "c"))
    assert found["fisher_ratio"] == pytest.approx(np.trace(between) / np.trace(within), rel=1e-10)
    assert "fisher_document" not in found
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    for k, name in enumerate("abc"):
        nearest = min(np.linalg.norm(means[k] - means[j]) for j in range(3) if j != k)
        spread = np.sqrt(((x[y == k] - means[k]) ** 2).sum(1).mean())
        assert found["separation"][name] == pytest.approx(nearest / spread, rel=1e-10)


def test_the_documents_ratio_changes_with_the_scale_and_ours_does_not() -> None:
    x, y = _embeddings(2)
    one, twice = (separation(*_sums(s * x, y, 2), ("a", "b")) for s in (1, 2))
    means = np.stack([x[y == k].mean(0) for k in (0, 1)])
    intra = ((x - means[y]) ** 2).sum(1).mean()
    assert one["fisher_document"] == pytest.approx(np.linalg.norm(means[0] - means[1]) / intra, rel=1e-10)
    assert twice["fisher_document"] == pytest.approx(one["fisher_document"] / 2)
    assert twice["fisher_ratio"] == pytest.approx(one["fisher_ratio"])
    assert twice["separation"] == pytest.approx(one["separation"])


def test_absent_classes_and_single_ones() -> None:
    x, y = _embeddings(3)
    known = y < 2
    found = separation(*_sums(x[known], y[known], 3), ("a", "b", "c"))
    assert set(found["separation"]) == {"a", "b"}
    only = y == 0
    assert separation(*_sums(x[only], y[only], 3), ("a", "b", "c")) == {}


def _batches(x: np.ndarray, y: np.ndarray, size: int) -> list[Batch]:
    starts = range(0, len(x), size)
    keys = np.zeros(len(x), dtype=np.uint64)
    return [
        Batch(x[s : s + size], y[s : s + size], keys[s : s + size], np.arange(s, min(s + size, len(x))))
        for s in starts
    ]


@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "kept features"])
def test_one_pass_sees_what_goes_into_the_head_also_behind_a_cut(is_cut: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, y = _embeddings(3)
    x = x.astype(np.float32)
    images = torch.from_numpy(x)
    plain = predict_outputs(model, _batches(x, y, 7), torch.from_numpy)
    part: nn.Module = model
    given = x
    if is_cut:
        cut = find_cut(model, ["0"], ["2"], images[:8], model.train)
        part, given = Tail(model, cut, (4,)), prefix_features(model, cut, images).numpy()
    with ClassSums(model[2], 3) as sums:
        outputs = predict_outputs(part, _batches(given, y, 7), torch.from_numpy, statistics=sums)
    assert outputs == pytest.approx(plain, abs=1e-6)
    with torch.no_grad():
        embeddings = model[1](model[0](images)).double().numpy()
    counts, totals, squares = _sums(embeddings, y, 3)
    assert sums.counts.numpy() == pytest.approx(counts)
    assert sums.sums.numpy() == pytest.approx(totals, rel=1e-5)
    assert sums.squares.numpy() == pytest.approx(squares, rel=1e-5)
    assert not model[2]._forward_hooks, "the hook is gone"
