"""`warmstart sweep`: trials in processes of their own, the best by val, and what happens where something does not."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
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
from warmstart.methods.sweep.request import Request
from warmstart.methods.sweep.search import Search
from warmstart.methods.sweep.study import open_study
from warmstart.methods.trials.process import Process
from warmstart.methods.trials.trial import Slot, Trial
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
    with pytest.raises(UserError, match=r"with the storage sweep.db, not sqlite:///other.db"):
        api.sweep(str(out), storage="sqlite:///other.db")
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
