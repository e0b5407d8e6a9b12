"""Rules about the plan and the start, on a real run whose record says something else."""

from __future__ import annotations

import json
import math

import pytest

from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.rules import diagnose_history
from warmstart.analysis.diagnose.rules_model import (
    head_frozen,
    norms,
    too_regularised,
    weights_bring_nothing,
    weights_never_loaded,
)
from warmstart.run.reader import Run


def history_of(path):
    return of_run(Run(path))


def loaded(resolved):
    resolved["model"]["source"] = {"kind": "file", "path": "a.pt", "sha256": None}
    resolved["model"]["head"] |= {"kind": "kept", "reason": "the same classes"}


def start_at(run, later=None, **metrics):
    """The start's row of val says `metrics`; `later` are accuracies of val after it, the last one to the end."""
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text(encoding="utf-8").splitlines()]
    told = iter([] if later is None else later)
    for row in rows:
        if row["step"] == 0 and row["split"] == "val":
            row |= metrics
        elif row["split"] == "val" and later is not None:
            row["accuracy"] = next(told, later[-1])
    (run / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_kept_head_that_answers_by_chance_was_never_loaded(changed):
    run = changed(resolved=loaded)
    start_at(run, accuracy=0.34, accuracy_low=0.2, accuracy_high=0.5, loss=math.log(3))
    found = weights_never_loaded(history_of(run))
    assert found is not None
    assert "accuracy 0.340" in found.evidence[0] and "chance is 0.333" in found.evidence[0]
    assert found.changes["train.epochs"] == 9


def test_a_kept_head_that_knows_something_was_loaded(changed):
    run = changed(resolved=loaded)
    start_at(run, accuracy=0.7, accuracy_low=0.5, accuracy_high=0.9, loss=0.8)
    assert weights_never_loaded(history_of(run)) is None


def test_a_start_that_is_sure_of_wrong_answers_was_loaded(changed):
    """Twice the loss of chance: a head that nobody trained prefers no class."""
    run = changed(resolved=loaded)
    wrong = {"accuracy": 0.34, "accuracy_low": 0.2, "accuracy_high": 0.5, "loss": 2 * math.log(3)}
    start_at(run, [0.35, 0.4, 0.95], **wrong)
    history = history_of(run)
    assert weights_never_loaded(history) is None
    found = weights_bring_nothing(history)
    assert found is not None and "accuracy 0.340 and loss 2.2 on val" in found.evidence[0]


def test_a_start_that_learns_fast_is_no_finding(changed):
    run = changed(resolved=loaded)
    wrong = {"accuracy": 0.34, "accuracy_low": 0.2, "accuracy_high": 0.5, "loss": 2 * math.log(3)}
    start_at(run, [0.9, 0.95, 0.95], **wrong)
    history = history_of(run)
    assert weights_bring_nothing(history) is None
    assert any("sure of itself, and right by chance" in note for note in diagnose_history(history).notes)


def test_a_training_from_nothing_is_no_accusation_unless_blocks_are_frozen(changed, diagnosed_run):
    assert weights_never_loaded(history_of(diagnosed_run)) is None

    def freeze(plan):
        plan["rows"][0] |= {"trainable": [], "mode": "frozen"}

    found = weights_never_loaded(history_of(changed(plan=freeze)))
    assert found is not None and found.numbers["frozen"] == ["conv1"]


def test_a_new_head_must_train(changed, diagnosed_run):
    assert head_frozen(history_of(diagnosed_run)) is None

    def freeze(plan):
        plan["rows"][-1] |= {"trainable": [], "mode": "frozen"}

    found = head_frozen(history_of(changed(plan=freeze)))
    assert found is not None and "none of" in found.evidence[0]


def test_live_norms_and_two_images(diagnosed_run, changed):
    assert norms(history_of(diagnosed_run)) is None
    run = changed()
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("  batch_size: 8", "  batch_size: 2"), encoding="utf-8")
    found = norms(history_of(run))
    assert found is not None and found.changes["data.batch_size"] == 32
    assert "conv1" in found.evidence[0]


def test_dropout_of_nine_tenths(diagnosed_run, changed):
    assert too_regularised(history_of(diagnosed_run)) is None
    run = changed()
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("  dropout: null", "  dropout: 0.9", 1), encoding="utf-8")
    found = too_regularised(history_of(run))
    assert found is not None and found.changes == {"model.dropout": 0.2}


def _frozen_head(plan):
    plan["rows"][-1] |= {"trainable": [], "mode": "frozen"}


def test_prototypes_need_no_head(changed):
    run = changed(resolved=lambda found: found.update(episodes={"classes": {}}), plan=_frozen_head)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert "meta:\n  method: none" in text
    (run / "config.yaml").write_text(
        text.replace("meta:\n  method: none", "meta:\n  method: protonet"), encoding="utf-8"
    )
    history = history_of(run)
    assert head_frozen(history) is None and weights_never_loaded(history) is None


@pytest.mark.parametrize("kind", ["blend", "compress"])
def test_what_was_made_of_a_run_has_no_frozen_head(changed, kind):
    run = changed(resolved=lambda found: found["model"]["source"].update(kind=kind), plan=_frozen_head)
    assert head_frozen(history_of(run)) is None
