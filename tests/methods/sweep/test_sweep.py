"""`warmstart sweep`: trials in processes of their own, the best by val, and what happens where something does not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import forked
from warmstart import api
from warmstart.cli import main
from warmstart.config import io
from warmstart.config.sweep_section import SweepConfig
from warmstart.engine import train
from warmstart.errors import Interrupted, UserError
from warmstart.methods.sweep import flow
from warmstart.methods.sweep.request import Request, check
from warmstart.methods.sweep.result import Swept, TrialRow
from warmstart.methods.sweep.search import Search
from warmstart.methods.sweep.study import Study, open_study
from warmstart.methods.trials.process import Process
from warmstart.methods.trials.trial import Outcome, Row, Slot, Trial, validations
from warmstart.run import layout
from warmstart.run.reader import Run

LONG = pytest.mark.skipif("WARMSTART_SLOW" not in os.environ, reason="half a minute: `make slow`")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(flow, "launch_here", forked.launch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(small_settings: dict[str, Any], tmp_path: Path) -> str:
    return write_config(tmp_path / "first.yaml", {**small_settings, "epochs": 2})


def write_config(path: Path, settings: dict[str, Any]) -> str:
    loaded = io.load(settings)
    path.write_text(io.to_yaml(loaded.config, loaded.origins))
    return str(path)


def no_launch(trial: Trial, slot: Slot) -> Process:
    raise AssertionError(f"trial {trial.number} is known already")


def test_a_grid_is_tried_and_the_best_alone_meets_test(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = api.sweep(config, set=["lr=.0001,.03"], slots=2)
    out = Path("first-sweep")
    rows = {row.number: row for row in found.trials}
    assert found.best is not None and [row.state for row in found.trials] == ["finished"] * 2
    best, other = rows[found.best], rows[1 - found.best]
    assert best.value is not None and other.value is not None and best.value >= other.value
    assert best.values["lr"] in (".0001", ".03") and best.run is not None and other.run is not None
    assert (Path(best.run) / layout.GAINS).exists(), "the best is a whole run"
    assert not (Path(other.run) / layout.GAINS).exists(), "test is not asked for choosing"
    tested = [row["step"] for row in Run(Path(other.run)).evals.rows if row["split"] == "test"]
    assert tested == [0], "only the start, as in every run"
    text = found.text()
    assert (
        f"best of 2: trial {best.number} (lr {best.values['lr']}), accuracy of val {best.value:.4f}" in text
    )
    assert "chosen among 2 on val, so that number is too kind" in text and "  test: " in text
    below = [f"{found.folder}/trials/{row.number:04}" for row in (other, best)]
    assert f"warmstart compare {below[0]} {below[1]} --split val" in text

    record = json.loads((out / layout.SWEEP).read_text())
    assert record["finished"] and record["space"] == {"lr": ".0001,.03"} and record["best"] == best.number
    assert record["trials"][best.number]["value"] == best.value
    assert io.load({}, str(out / layout.BEST_CONFIG)).config.optim.lr == float(best.values["lr"])
    assert (out / layout.SWEEP_PARALLEL).stat().st_size > 10_000
    looks = json.loads((out / layout.TRIALS / layout.LOOKS).read_text())["data"]
    assert [entry["val"]["largest_table"] for entry in looks.values()] == [2]

    monkeypatch.setattr(flow, "launch_here", no_launch)
    assert api.sweep(config, set=["lr=.0001,.03"]).trials == found.trials
    assert api.sweep(str(out), slots=1).trials == found.trials, "by its folder, from anywhere"
    with pytest.raises(UserError, match="holds a sweep with other settings: set"):
        api.sweep(config, set=["lr=.0001,.003"])
    write_config(Path(config), {**yaml_flags(config), "epochs": 3})
    with pytest.raises(UserError, match=r"other settings: train\.epochs of the config"):
        api.sweep(config, set=["lr=.0001,.03"])
    with pytest.raises(UserError, match=r"with the storage sweep.db, not sqlite:////.*other.db"):
        api.sweep(str(out), storage="sqlite:///other.db")
    (out / layout.TRIALS).rename("elsewhere")
    (out / layout.BEST_CONFIG).unlink()
    (out / layout.TRIALS).mkdir()
    far = api.sweep(str(out))
    assert (out / layout.BEST_CONFIG).exists(), "it needs the values only"
    assert "run:" not in far.text() and "warmstart compare" not in far.text()
    with pytest.raises(UserError, match="--method with the folder of a sweep"):
        api.sweep(str(out), method="tpe")


def yaml_flags(config: str) -> dict[str, Any]:
    content = yaml.safe_load(Path(config).read_text())
    names = ("path", "image_size", "batch_size", "train_ratio", "val_ratio", "workers")
    own = {name: content["data"][name] for name in names}
    return {"data": own.pop("path"), **own, "model": content["model"]["name"], "weights": "none",
            "device": "cpu", "tensorboard": False, "pictures": False, "lr": 0.01}  # fmt: skip


def test_halving_stops_the_losers_at_a_third_and_an_interruption_costs_nothing(
    small_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "first.yaml", {**small_settings, "epochs": 6})
    launched: list[int] = []

    def interrupted(trial: Trial, slot: Slot) -> Process:
        launched.append(trial.number)
        if len(launched) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forked.launch(trial, slot)

    monkeypatch.setattr(flow, "launch_here", interrupted)
    settings = {"set": ["lr=.00001,.01,.0001"], "prune": "halving"}
    with pytest.raises(Interrupted, match="states are saved") as error:
        api.sweep(config, **settings)
    assert error.value.fix == f"warmstart sweep {tmp_path / 'first-sweep'}"
    assert not json.loads((tmp_path / "first-sweep" / layout.SWEEP).read_text())["finished"]
    found = api.sweep("first-sweep")
    assert sorted(row.state for row in found.trials) == ["finished", "stopped", "stopped"]
    assert found.best_row is not None and found.best_row.step == found.best_row.total_steps == 18
    for row in found.trials:
        rows = [each for each in Run(Path(str(row.run))).evals.rows if each.get("kind") != "evaluate"]
        steps = [each["step"] for each in rows if each["split"] == "val"]
        assert steps == sorted(set(steps)), "nothing was trained twice"
        if row.state == "stopped":
            assert 6 <= row.step < 18, "two epochs of six, and what it did until it was told"
    assert (
        f"2 trials were stopped early, after {sum(r.step for r in found.trials) - 18} of their 36 steps"
        in found.text()
    )


def test_two_sweeps_share_the_trials_of_one_storage(config: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    results: list[Any] = []

    def work(name: str) -> None:
        settings = io.validate_section(
            SweepConfig, {"set": ["lr=.001,.01,.03"], "storage": url, "output_dir": name}
        )
        request = Request(tmp_path / name, settings, io.load({}, config), tmp_path)
        request.folder.mkdir()
        (request.folder / layout.SWEEP_BASE).write_text(Path(config).read_text())
        results.append(flow.sweep(request, goes_on=False))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    numbers = [
        int(run.name) for name in "ab" for run in (tmp_path / name).glob("trials/????") if run.is_dir()
    ]
    assert sorted(numbers) == [0, 1, 2], "each was made in one place"
    last = max(results, key=lambda found: sum(row.state == "finished" for row in found.trials))
    assert {row.state for row in last.trials} == {"finished"} and last.storage == url


@pytest.mark.slow
@LONG
def test_two_processes_on_one_storage_one_of_them_killed(config: str, tmp_path: Path) -> None:
    """As it is in life: each driver and each trial is a process of its own; a driver is killed, and goes on."""
    common = [sys.executable, "-m", "warmstart", "sweep", config, "--set", "lr=.001,.01,.02,.03"]
    common += ["--storage", f"sqlite:///{tmp_path / 'shared.db'}", "--output-dir"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first, second = (
        subprocess.Popen([*common, name], env=environment, stderr=subprocess.DEVNULL) for name in "ab"
    )
    while not list(tmp_path.glob("a/trials/*.pid")):
        assert first.poll() is None
    first.kill()
    first.wait()
    assert second.wait(200) == 0
    assert subprocess.run([*common, "a"], env=environment, check=False).returncode == 0
    record = json.loads((tmp_path / "a" / layout.SWEEP).read_text())
    assert [row["state"] for row in record["trials"]] == ["finished"] * 4


@pytest.mark.slow
@LONG
def test_the_same_on_a_local_ray(config: str) -> None:
    found = api.sweep(config, set=["lr=.001,.01"], engine="ray", slots=2)
    assert [row.state for row in found.trials] == ["finished"] * 2 and found.best is not None


def test_time_that_is_over_leaves_trials_that_go_on(small_settings: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "first.yaml", {**small_settings, "epochs": 5000})
    found = api.sweep(config, set=["lr=.001,.01"], time_budget="4s")
    assert [row.state for row in found.trials] == ["paused", "waiting"] and found.waits and found.best is None
    assert "no trial has come to its end yet" in found.text() and "go on: warmstart sweep" in found.text()


def test_halving_that_is_out_of_time_gives_no_trial_up(made_search: Callable[..., Any]) -> None:
    """Two trials wait at a rung, and nobody has asked for the next one: the time was over."""
    search, study, trials, _ = made_search(2, prune="halving")
    for trial, outcome in ((trial, Outcome(trial, "paused", rows_of(trial)[:3])) for trial in trials):
        assert search.judge(trial, outcome.rows) == "pause"
        search.ended(outcome)
    search.close()
    assert [known.state for known in study.known()] == ["running"] * 2
    assert all(known.notes["is_paused"] for known in study.known())


def test_a_trial_that_was_killed_goes_on_once(made_search: Callable[..., Any]) -> None:
    search, study, (trial,), source = made_search(1)
    killed = Outcome(trial, "failed", rows_of(trial)[:2], 1.0, "it was ended by signal 9", was_killed=True)
    search.ended(killed)
    assert study.known()[0].state == "running"
    again = next(source)
    assert again is not None and again.number == 0
    search.ended(killed)
    assert study.known()[0].state == "failed" and "signal 9" in study.known()[0].notes["reason"]


def test_trials_without_val_are_an_error_at_the_first(made_search: Callable[..., Any]) -> None:
    search, _, (trial,), _ = made_search(1)
    with pytest.raises(UserError, match="no val images to compare trials by"):
        search.ended(Outcome(trial, "finished", []))


def test_facts_are_those_of_the_runs_that_are_there(made_search: Callable[..., Any]) -> None:
    first, _, (trial,), _ = made_search(1)
    assert first._facts(trial.run)["total_steps"] == 12
    text = (trial.run / layout.RESOLVED).read_text().replace('"total_steps": 12', '"total_steps": 24')
    (trial.run / layout.RESOLVED).write_text(text)
    assert Search(first._request, first._study)._facts(trial.run)["total_steps"] == 24


@pytest.fixture
def made_search(small_settings: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """A search whose `num` trials were taken, and have a run each (the same, of four epochs)."""

    def make(num: int, **settings: Any) -> tuple[Search, Study, list[Trial], Iterator[Trial | None]]:
        asked = {"set": ["lr=.001..0.003"], "method": "random", "trials": num, **settings}
        base = io.load({**small_settings, "epochs": 4})
        request = Request(tmp_path, io.validate_section(SweepConfig, asked), base, tmp_path)
        (tmp_path / layout.SWEEP_BASE).write_text(io.to_yaml(base.config, base.origins))
        study = open_study(request, f"sqlite:///{tmp_path / 'sweep.db'}", "here", is_new=True)
        search = Search(request, study)
        source = search.trials()
        trials = [trial for trial in (next(source) for _ in range(num)) if trial is not None]
        run = train.finetune(io.load({**small_settings, "epochs": 4, "output_dir": str(tmp_path / "run")}))
        for trial in trials:
            trial.run.parent.mkdir(exist_ok=True)
            shutil.copytree(run, trial.run)
        return search, study, trials, source

    return make


def rows_of(trial: Trial) -> list[Row]:
    return validations(trial.run)


def test_of_several_tasks_each_has_its_count(
    small_settings: dict[str, Any], tmp_path: Path, overlapping: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(overlapping, other)
    settings = {**small_settings, "epochs": 1, "tasks": f"second={other}", "tasks.first": "first"}
    config = write_config(tmp_path / "two.yaml", settings)
    found = api.sweep(config, set=["lr=.001,.01"])
    assert [row.state for row in found.trials] == ["finished"] * 2 and found.best is not None
    looks = json.loads((tmp_path / "two-sweep" / layout.TRIALS / layout.LOOKS).read_text())["data"]
    assert all(entry["val"]["largest_table"] == 2 for entry in looks.values())
    assert "test of first:" in found.text() and "test of second:" in found.text()


def test_what_nothing_reads_is_refused_or_told(
    config: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def asked(**settings: Any) -> None:
        found = io.validate_section(SweepConfig, settings)
        check(found, config, io.load({}, config))

    with pytest.raises(UserError, match="--momentum has no effect with --optimizer adamw"):
        asked(set=["momentum=.8,.95"])
    asked(set=["momentum=.8,.95", "optimizer=sgd,adamw"])
    with pytest.raises(UserError, match="its flag: --set lr="):
        asked(set=["optim.lr=.1,.2"])
    with pytest.raises(UserError, match="a sweep of --meta"):
        asked(set=["meta=maml,protonet"])
    for name in ("ignore", "mask-remap", "positive", "tasks", "mix-classes"):
        with pytest.raises(UserError, match=f"--set {name}: trials on other data, or with other classes"):
            asked(set={name: ["1", "2"]})
    asked(set=["lr=.1,.2"], prune="median")
    assert "--prune median has no effect with 2 trials" in caplog.text
    with pytest.raises(UserError, match="--seed with a grid"):
        api.sweep(config, set=["lr=.1,.2"], seed=7)
    with pytest.raises(UserError, match="5 is not NAME=VALUES"):
        api.sweep(config, set=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="check its path"):
        api.sweep(str(tmp_path / "absent.yaml"), set=["lr=.1,.2"])


def test_a_file_of_sqlite_is_the_same_from_anywhere(tmp_path: Path) -> None:
    def stored(url: str) -> str | None:
        return io.validate_section(SweepConfig, {"set": ["lr=.1,.2"], "storage": url}).storage

    whole = f"sqlite:///{tmp_path.as_posix()}/shared.db"
    assert stored("sqlite:///shared.db") == stored(whole) == whole
    assert stored("sqlite:///:memory:") == "sqlite:///:memory:"


def test_passwords_are_hidden_wherever_they_stand() -> None:
    for url in ("mysql://me:a/b@c@host/db", "mysql://host/db?user=me&password=a/b@c"):
        shown = io.validate_section(SweepConfig, {"set": ["lr=.1,.2"], "storage": url}).shown_storage
        assert shown is not None and "***" in shown and "a/b" not in shown and "host/db" in shown


def test_a_device_that_is_not_there_is_said_before_the_first_trial(config: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuda:77"):
        api.sweep(config, set=["lr=.1,.2"], devices="cuda:77")
    assert not (tmp_path / "first-sweep" / layout.TRIALS).exists()


def test_the_interval_of_the_best_says_whom_val_cannot_tell_from_it() -> None:
    rows = tuple(
        TrialRow(number, "finished", {"lr": "1"}, value, low, high, 0, 9, 9)
        for number, (value, low, high) in enumerate([(0.8, 0.7, 0.9), (0.75, 0.6, 0.8), (0.6, 0.5, 0.7)])
    )
    found = Swept("out", "accuracy", "grid", "none", 0, "base", {"lr": "1,2,3"}, "sweep.db", rows, 0, {})
    assert found.alike() == [1]
    text = found.text()
    assert "accuracy of val 0.8000 [0.700, 0.900]" in text and "Val cannot tell it from trial 1." in text
    assert "That is the start: nothing that was trained is better on val." in text


def test_trials_that_all_fail_are_an_error_with_the_reason(config: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all 2 trials failed; the first: .*absent_one"):
        api.sweep(config, set=["model=timm:absent_one,timm:absent_two"])
    record = json.loads((tmp_path / "first-sweep" / layout.SWEEP).read_text())
    assert [row["state"] for row in record["trials"]] == ["failed"] * 2 and "absent_two" in str(
        record["trials"][1]
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--set", "lrr=.1,.2", "--set", "epoch=1,2"],
            ["2 problems", "Did you mean 'lr", "Did you mean 'epochs'"],
        ),
        (["--set", "lr=-1,.1", "--set", "dropout=.1,2"], ["--lr (optim.lr)", "--dropout (model.dropout)"]),
        (["--set", "seed=1,2", "--set", "name=a,b"], ["--set seed: it divides the data", "its own place"]),
        (["--set", "select-by=loss,accuracy"], ["trials are compared by it"]),
        (["--set", "layer_decay=.5..1.5"], ["--layer-decay"]),
        ([], ["--set is missing"]),
        (["--set", "lr=.1,.2", "--output-dir", "used"], ["--output-dir used is in use"]),
        (["--set", "lr=1e-3..1e-2:1e-6", "--method", "grid"], ["the grid has", "combinations"]),
        (["--set", "lr=.1,.2", "--trials", "0"], ["--trials"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    config: str, arguments: list[str], told: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "diary.txt").write_text("mine")
    assert main(["sweep", config, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(each in error for each in told), error
    assert not (tmp_path / "first-sweep").exists() and len(list((tmp_path / "used").iterdir())) == 1


def test_a_damaged_request_and_a_folder_in_use_are_said(config: str, tmp_path: Path) -> None:
    found = io.validate_section(SweepConfig, {"set": ["lr=.001,.01"]})
    from warmstart.methods.sweep import request

    folder = tmp_path / "first-sweep"
    begun, goes_on = request.begin(folder, found, io.load({}, config), tmp_path)
    assert not goes_on and begun.num_trials == 2
    (folder / layout.OWNER).write_text(
        json.dumps({"pid": os.getppid(), "born": None, "host": platform.node()})
    )
    with pytest.raises(UserError, match=f"process {os.getppid()} is working in"):
        flow.sweep(begun, goes_on=False)
    (folder / layout.SWEEP_REQUEST).write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"request.json is damaged"):
        api.sweep(str(folder))


def test_a_password_is_not_written_down(config: str, tmp_path: Path) -> None:
    from warmstart.methods.sweep import request

    url = "postgresql://me:secret@host/db"
    found = io.validate_section(SweepConfig, {"set": ["lr=.001,.01"], "storage": url})
    request.begin(tmp_path / "out", found, io.load({}, config), tmp_path)
    assert "secret" not in (tmp_path / "out" / layout.SWEEP_REQUEST).read_text()
    with pytest.raises(UserError, match="has a password, which is not written down"):
        request.go_on(tmp_path / "out", {})
    assert request.go_on(tmp_path / "out", {"storage": url})[0].storage == url


def test_what_is_said_of_a_validation(small_settings: dict[str, Any], tmp_path: Path) -> None:
    """The judge reads a real run's rows: the median stops, halving pauses, and the end is never stopped."""
    settings = io.validate_section(SweepConfig, {"set": ["lr=.001,.002,.003,.004,.005"]})
    base = io.load({**small_settings, "epochs": 4, "select_by": "loss"})
    request = Request(tmp_path, settings, base, tmp_path)
    (tmp_path / layout.SWEEP_BASE).write_text(io.to_yaml(base.config, base.origins))
    study = open_study(request, f"sqlite:///{tmp_path / 'sweep.db'}", "here", is_new=True)
    search = Search(request, study)
    trials = search.trials()
    made = [trial for trial in (next(trials) for _ in range(5)) if trial is not None]
    run = train.finetune(
        io.load({**small_settings, "epochs": 4, "select_by": "loss", "output_dir": str(made[0].run)})
    )
    rows = [row for row in Run(run).evals.rows if row["split"] == "val"]
    assert len(rows) == 5 and len(made) == 5
    for number, trial in enumerate(made):
        if number:
            trial.run.symlink_to(run)  # all are the same run; what differs is what the judge is told
        for end in range(1, len(rows) + 1):
            told = [{**row, "loss": number / 10} for row in rows[:end]]
            decision = search.judge(trial, told)
            if number < 4 or end in (1, 5):
                assert decision == "go on", (number, end)
            elif end == 2:
                assert decision == "stop", "the largest loss of five"
        if number < 4:
            study.end(trial.number, "finished", -number / 10)
    known = study.known()[0]
    assert list(known.scores) == [250, 500, 750, 1000]
