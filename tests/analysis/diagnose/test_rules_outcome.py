"""Worse than the start, and what was forgotten."""

from __future__ import annotations

import json

from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.rules_outcome import forgetting, worse_than_start
from warmstart.run.reader import Run


def gain(split, low, high):
    return {
        **{"metric": "accuracy", "split": split, "difference": (low + high) / 2, "low": low, "high": high},
        **{"p": 0.001, "fixed": 3, "broken": 40, "change": f"accuracy {low:+.3f} to {high:+.3f}"},
    }


def with_gains(run, *gains):
    (run / "gains.json").write_text(json.dumps(list(gains)), encoding="utf-8")
    return of_run(Run(run))


def test_worse_by_the_paired_test(changed):
    found = worse_than_start(with_gains(changed(), gain("test", -0.2, -0.1)))
    assert found is not None and found.evidence[0].startswith("test: accuracy -0.200")
    assert found.changes["optim.lr"] == 5e-4


def test_no_validation_reached_the_start(curves):
    found = worse_than_start(curves([0.5, 0.55, 0.56], start={"accuracy": 0.8, "loss": 0.5}))
    assert found is not None and "0.800" in found.evidence[0]
    assert worse_than_start(curves([0.78, 0.79, 0.79], start={"accuracy": 0.8, "loss": 0.5})) is None


def test_forgetting_is_about_the_retained_data(changed):
    history = with_gains(changed(), gain("val", 0.1, 0.2), gain("retain", -0.3, -0.2))
    found = forgetting(history)
    assert found is not None and "0.250" in found.title
    assert worse_than_start(history) is None
