"""The study: every trial is taken once, whoever asks, in whatever process; what cannot be used is said."""

from __future__ import annotations

import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from warmstart.config import io
from warmstart.config.sweep_section import SweepConfig
from warmstart.errors import UserError
from warmstart.methods.sweep import study as module
from warmstart.methods.sweep.request import Request
from warmstart.methods.sweep.study import Study, open_study

SPACE = ["lr=1e-4..1e-2:log", "batch-size=16..64:int:16", "augment=none,light"]


@pytest.fixture
def request_of(tmp_path: Path):
    def make(**settings: Any) -> Request:
        found = io.validate_section(SweepConfig, {"set": SPACE, "trials": 12, **settings})
        base = io.load({"data": str(tmp_path), "model": "builtin:fashion_cnn", "weights": "none"})
        return Request(tmp_path, found, base, tmp_path)

    return make


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sweep.db'}"


def taken(study: Study) -> list[tuple[int, dict[str, str]]]:
    found = []
    while (each := study.take()) is not None:
        found.append(each)
        score = float(each[1]["lr"]) if "lr" in each[1] else float(each[0])
        study.end(each[0], "finished", score, run="somewhere")
    return found


def test_a_grid_is_taken_in_its_order(request_of, tmp_path: Path) -> None:
    request = request_of(set=["lr=1e-3,1e-2", "epochs=1..3:int"], trials=None, method="grid")
    study = open_study(request, url(tmp_path), "here", is_new=True)
    assert [values for _, values in taken(study)] == [
        {"lr": lr, "epochs": epochs} for lr in ("1e-3", "1e-2") for epochs in "123"
    ]
    assert [each.number for each in study.known()] == list(range(6)) and study.num_waiting() == 0


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_values_are_those_of_the_space_and_the_same_after_a_kill(
    request_of, tmp_path: Path, method: str
) -> None:
    straight = taken(open_study(request_of(method=method), url(tmp_path), "a", is_new=True))
    assert len(straight) == len({str(values) for _, values in straight}) == 12
    for _, values in straight:
        assert 1e-4 <= float(values["lr"]) <= 1e-2
        assert values["batch-size"] in ("16", "32", "48", "64") and values["augment"] in ("none", "light")
    (tmp_path / "again").mkdir()
    found = []
    for _ in range(6):  # a process for every two trials
        study = open_study(request_of(method=method), url(tmp_path / "again"), "a", is_new=not found)
        for _ in range(2):
            number, values = study.take() or (-1, {})
            study.end(number, "finished", float(values["lr"]))
            found.append((number, values))
    assert found == straight


def test_processes_that_share_a_storage_take_every_trial_once(request_of, tmp_path: Path) -> None:
    shared = request_of(storage=url(tmp_path), method="random", trials=24)

    def work(name: str) -> list[int]:
        study = open_study(shared, url(tmp_path), name, is_new=True)
        return [number for number, _ in taken(study)]

    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(work, "abcd")]
    assert Counter(number for each in found for number in each) == Counter(range(24))


def test_what_was_taken_and_not_ended_is_found_again_by_its_owner(request_of, tmp_path: Path) -> None:
    shared = request_of(storage=url(tmp_path), method="tpe")
    first, second = (open_study(shared, url(tmp_path), name, is_new=True) for name in "ab")
    mine, others = first.take(), second.take()
    assert mine is not None and others is not None and mine[1] != others[1]
    again = open_study(shared, url(tmp_path), "a", is_new=False)
    assert [(known.number, values) for known, values in again.mine()] == [mine]


def test_more_trials_may_be_asked_for_later(request_of, tmp_path: Path) -> None:
    first = taken(open_study(request_of(trials=3, method="random"), url(tmp_path), "a", is_new=True))
    rest = taken(open_study(request_of(trials=6, method="random"), url(tmp_path), "a", is_new=False))
    assert [number for number, _ in first + rest] == list(range(6))
    assert len({str(values) for _, values in first + rest}) == 6


def test_scores_below_the_median_of_four_are_known(request_of, tmp_path: Path) -> None:
    study = open_study(request_of(), url(tmp_path), "a", is_new=True)
    for score in (0.1, 0.2, 0.3, 0.4):
        number, _ = study.take() or (-1, {})
        study.report(number, 500, score)
        assert not study.is_below_median(number), "fewer than four are finished"
        study.end(number, "finished", score)
    number, _ = study.take() or (-1, {})
    study.report(number, 500, 0.24)
    assert study.is_below_median(number)
    study.report(number, 750, 0.9)
    assert not study.is_below_median(number), "nobody was measured there"
    study.end(number, "stopped", reason="slow")
    known = study.known()[number]
    assert (known.state, known.score, known.notes["reason"]) == ("stopped", 0.9, "slow")
    assert known.scores == {500: 0.24, 750: 0.9}


def test_the_median_meets_trials_that_validate_elsewhere(request_of, tmp_path: Path) -> None:
    study = open_study(request_of(), url(tmp_path), "a", is_new=True)
    for place in (500, 600, 700, 800):  # runs of other lengths validate at other shares of their steps
        number, _ = study.take() or (-1, {})
        study.report(number, place, 0.9)
        study.end(number, "finished", 0.9)
    number, _ = study.take() or (-1, {})
    study.report(number, 450, 0.1)
    assert study.is_below_median(number)


def test_importance_names_the_setting_that_told(request_of, tmp_path: Path) -> None:
    study = open_study(request_of(method="random", trials=20), url(tmp_path), "a", is_new=True)
    assert study.importance() == {}
    taken(study)
    found = study.importance()
    assert set(found) == {"lr", "batch-size", "augment"} and max(found, key=lambda name: found[name]) == "lr"
    assert sum(found.values()) == pytest.approx(1)


def test_a_locked_storage_is_said_after_the_wait(
    request_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT", 0.2)
    study = open_study(request_of(), url(tmp_path), "a", is_new=True)
    other = sqlite3.connect(tmp_path / "sweep.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"sweep.db is locked: another program has held it for 0.2 s"):
        study.take()
    other.execute("ROLLBACK")
    other.close()
    assert study.take() is not None


def test_a_storage_that_cannot_be_used_is_said(request_of, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database at all, but long enough to look into" * 40)
    with pytest.raises(UserError, match=r"broken.db is damaged"):
        open_study(request_of(), f"sqlite:///{tmp_path / 'broken.db'}", "a", is_new=True)
    with pytest.raises(UserError, match="does not answer"):
        open_study(request_of(), "nowhere", "a", is_new=True)
    with pytest.raises(UserError, match="does not answer") as error:
        open_study(request_of(), f"sqlite:///{tmp_path}/absent/sweep.db", "a", is_new=True)
    assert "sqlite:///FILE.db" in str(error.value)
    secret = "postgresql+nothing://me:secret@host/db"
    with pytest.raises(UserError) as error:
        open_study(request_of(storage=secret), secret, "a", is_new=True)
    assert "secret" not in str(error.value)


def test_the_storage_of_another_sweep_is_refused(request_of, tmp_path: Path) -> None:
    open_study(request_of(), url(tmp_path), "a", is_new=True)
    with pytest.raises(UserError, match="holds no sweep with these settings"):
        open_study(request_of(seed=1), url(tmp_path), "a", is_new=False)
    (tmp_path / "sweep.db").unlink()
    with pytest.raises(UserError, match="holds no sweep with these settings"):
        open_study(request_of(), url(tmp_path), "a", is_new=False)
