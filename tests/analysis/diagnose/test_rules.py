"""The table of rules: what is asked, what is left out and said, and how findings are ordered."""

from __future__ import annotations

import json

import pytest

from warmstart.analysis.diagnose import rules
from warmstart.analysis.diagnose.history import of_run
from warmstart.analysis.diagnose.overview import is_folder_of_runs, overview
from warmstart.analysis.diagnose.rules import RULES, diagnose_history, open_history
from warmstart.errors import UserError
from warmstart.run.reader import Run


def test_every_rule_has_a_name_of_its_own_and_a_known_need():
    names = [rule.id for rule in RULES]
    assert len(set(names)) == len(names) >= 18
    assert {need for rule in RULES for need in rule.needs} <= set(rules._LACKS)
    ids = set(names) - {"schedule"} | {"rate_climbed", "schedule_ended"}
    assert set(rules.EXPLAINS) <= ids
    assert {name for explained in rules.EXPLAINS.values() for name in explained} <= ids


def test_a_certain_cause_explains_its_symptoms(curves):
    history = curves(
        [0.1, 0.3, 0.5, 0.4, 0.3, 0.2],
        [98.0, 2.0, 0.5, 0.8, 1.0, 1.4],
        [98.0, 2.0, 0.5, 0.3, 0.2, 0.1],
        start={"accuracy": 0.6, "loss": 1.2},
    )
    found = diagnose_history(history)
    assert [finding.id for finding in found.findings] == ["rate_too_high"]
    assert any(note.startswith("explained by the above: it overfits") for note in found.notes)


def test_one_validation_only(curves):
    found = diagnose_history(curves([0.5]))
    assert found.findings == ()
    assert "overfitting" in dict(found.left_out)
    assert "not asked, as there are fewer than two validations" in found.text()


def test_a_clean_bill_counts_the_rules(curves):
    found = diagnose_history(curves([0.5, 0.6, 0.62, 0.62], [1.0, 0.6, 0.55, 0.55]))
    assert found.findings == ()
    asked = len(RULES) - len(found.left_out)
    assert found.verdict == f"nothing found: {asked} of {len(RULES)} rules asked"


def test_a_run_in_progress_says_so(changed):
    def running(status):
        status |= {"state": "running", "host": "elsewhere"}

    found = diagnose_history(of_run(Run(changed(status=running))))
    assert found.state == "running"
    assert any("still going on" in note for note in found.notes)
    assert "still_improving" in dict(found.left_out)


def test_damaged_rows_are_counted(changed):
    run = changed()
    with (run / "evals.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 1, "epo\n[]\n')
    found = diagnose_history(of_run(Run(run)))
    assert "2 damaged rows were skipped" in found.notes


def test_a_run_without_rows(changed):
    run = changed()
    for name in ("metrics.jsonl", "evals.jsonl"):
        (run / name).write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="has no row yet"):
        open_history(str(run))


def test_text_and_json_say_the_same(diagnosed_run):
    found = diagnose_history(open_history(str(diagnosed_run)))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["verdict"] == found.verdict
    assert found.text().startswith(f"{diagnosed_run} (warmstart, finished): {found.verdict}"[:100])
    assert [finding["id"] for finding in told["findings"]] == [finding.id for finding in found.findings]


def test_a_folder_of_runs_has_a_row_each_and_names_the_damaged(diagnosed_run, changed):
    run = changed()
    broken = run.parent / "broken"
    broken.mkdir()
    for name in ("config.yaml", "resolved.json"):
        (broken / name).write_text("{", encoding="utf-8")
    assert is_folder_of_runs(str(run.parent)) and not is_folder_of_runs(str(run))
    found = overview(str(run.parent))
    assert [row["run"] for row in found] == [str(broken), str(run)]
    assert "damaged" in found[0]["verdict"] and found[1]["state"] == "finished"
    assert found.to_json()["runs"][1]["findings"] == found[1]["findings"]
    assert "verdict" in found.text()
