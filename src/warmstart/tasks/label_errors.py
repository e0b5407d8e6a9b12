"""Labels that a model contradicts: confident learning (Northcutt, Jiang & Chuang 2021, Journal of AI Research 70).

Shapes: N samples, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def likely_mislabelled(
    scores: NDArray[Any], targets: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(samples, classes): whose label is likely wrong, the likeliest first, and what it likely should be.

    `scores` (N, K) are probabilities, of samples that the model was not trained on: it learns wrong labels by heart,
    too. A class is as certain as it should be from the mean score that it has on the samples labelled so (t_j in the
    paper's equation 2). A sample is counted in the confident joint under the highest-scoring class that is certain;
    where that is not its label, it is taken (the off-diagonal of the joint). Order: by the score of the label minus
    that of the other class, the lowest first. A class that no sample has as its label is never suggested.
    """
    exact, labels = scores.astype(np.float64), targets.astype(np.int64)
    counts = np.bincount(labels, minlength=exact.shape[1])
    own = exact[np.arange(len(labels)), labels]
    with np.errstate(invalid="ignore", divide="ignore"):
        thresholds = np.bincount(labels, own, minlength=exact.shape[1]) / counts  # NaN: nothing reaches it
    certain = np.where(exact >= thresholds, exact, -np.inf)
    said = certain.argmax(axis=1)
    found = np.flatnonzero((certain.max(axis=1) > -np.inf) & (said != labels))
    order = np.argsort(own[found] - exact[found, said[found]], kind="stable")
    return found[order], said[found[order]]
