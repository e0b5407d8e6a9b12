"""Two models on the same samples: compared by the answers that they give."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.analysis.paired import Scored, change_between
from warmstart.records import Decision
from warmstart.tasks.classification import Classification


def test_a_threshold_in_force_decides_what_was_fixed() -> None:
    """The same scores twice: only the second model answers from .2 on, and that is right for every sample."""
    share = np.repeat([0.1, 0.3], 20)
    logits = np.stack([np.log(1 - share), np.log(share)], axis=1).astype(np.float32)
    targets = np.repeat([0, 1], 20)
    plain = Classification(("closed", "open"))
    decided = Classification(plain.classes, decision=Decision("open", 0.2))
    before, after = (
        Scored(task, task.scores(logits), task.evaluate(logits, targets)) for task in (plain, decided)
    )
    found = change_between(before, after, targets)
    assert (found.fixed, found.broken, found.direction) == (20, 0, 1)
    assert found.difference == pytest.approx(0.5) and found.low <= 0.5 <= found.high
    assert change_between(after, before, targets).direction == -1
    assert change_between(after, after, targets).difference == 0
