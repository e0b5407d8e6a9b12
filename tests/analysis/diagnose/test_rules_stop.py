"""Rules about schedules and stopping."""

from __future__ import annotations

import json

import numpy as np

from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.rules_stop import schedule, stopped_early, waiting
from warmstart.run.reader import Run


def test_a_cosine_that_passes_its_end_climbs(curves):
    rates = [0.5 * (1 + np.cos(np.pi * n / 20)) * 1e-3 for n in range(36)]
    found = schedule(curves([0.5, 0.6], rates=rates))
    assert found is not None and found.id == "rate_climbed"
    assert found.numbers["low"] < 1e-6 < 5e-4 < found.numbers["high"]
    assert schedule(curves([0.5, 0.6], rates=rates[:20])) is None


def test_warmup_is_no_climb(curves):
    rates = [*np.linspace(1e-5, 1e-3, 10), *np.linspace(1e-3, 1e-5, 20)]
    assert schedule(curves([0.5, 0.6], rates=rates)) is None


def test_a_schedule_that_is_too_short_leaves_no_rate(curves):
    found = schedule(curves([0.5, 0.6], rates=[*np.linspace(1e-3, 1e-4, 20), *[1e-7] * 20]))
    assert found is not None and found.id == "schedule_ended"
    assert found.numbers["share_idle"] == 0.5


def test_patience_of_one_is_named_with_the_epochs_it_waited(changed):
    def stop(status):
        status["stop_reason"] = "no new best in 1 validations"

    run = changed(status=stop)
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text(encoding="utf-8").splitlines()]
    first = [row for row in rows if row.get("epoch", 2) <= 1]
    (run / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first), encoding="utf-8")
    found = stopped_early(of_run(Run(run)))
    assert found is not None and found.on
    assert found.changes == {"train.patience": 10}
    assert found.numbers["epochs_waited"] == 1
    assert "after 1 of 3 epochs" in found.evidence[0]


def test_a_run_that_used_its_epochs_was_not_stopped_early(changed):
    def stop(status):
        status["stop_reason"] = "no new best in 1 validations"

    assert stopped_early(of_run(Run(changed(status=stop)))) is None  # 3 of 3 epochs


def test_waiting_for_images_counts_from_a_minute_on(changed):
    def slow(status):
        status["time"] = {"steps": 60.0, "data": 40.0}

    found = waiting(of_run(Run(changed(status=slow))))
    assert found is not None and found.numbers["share"] == 0.4
