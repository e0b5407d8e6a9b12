"""A run sent to trackers without any network: MLflow's SQLite file, wandb's offline folder; and what is refused."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

import warmstart as ws
from warmstart.errors import UserError
from warmstart.run import layout, writer


@pytest.fixture(scope="module")
def made(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("track") / "run"
    ws.finetune(
        "builtin:fashion_cnn",
        str(overlapping),
        weights="none",
        image_size="16",
        epochs=2,
        log_every="1steps",
        tensorboard=False,
        output_dir=str(folder),
        device="cpu",
    )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of SQLAlchemy
def test_mlflow_has_every_number_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'tracked.db'}")
    monkeypatch.chdir(tmp_path)
    sent = ws.track(str(run), to="mlflow", project="proof")
    client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'tracked.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("proof").experiment_id])
    assert found.info.run_id in sent.place and found.info.status == "FINISHED"
    rows = [json.loads(line) for line in (run / layout.EVALS).read_text().splitlines()]
    wanted = [(r["step"], r["accuracy"]) for r in rows if r["split"] == "val" and "kind" not in r]
    history = client.get_metric_history(found.info.run_id, "val/accuracy")
    assert sorted((m.step, m.value) for m in history) == wanted and len(wanted) == 3
    assert found.data.params["optim.lr"] and found.data.tags["warmstart.model"] == "builtin:fashion_cnn"
    assert "analysis.png" in {entry.path for entry in client.list_artifacts(found.info.run_id)}

    with pytest.raises(UserError, match="sent to mlflow already"):
        ws.track(str(run), to="mlflow", project="proof")
    ws.track(str(run), to="mlflow", project="proof", again=True, images=False)
    assert len(client.search_runs([found.info.experiment_id])) == 2


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_keeps_it_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sent = ws.track(str(run), to="wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"val/accuracy" in content and b"optim.lr" in content and str(file.parent) in sent.place
    assert json.loads((run / layout.TRACKED).read_text())["wandb"]["project"] == "warmstart"


def test_what_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--to neptune"):
        ws.track(str(run), to="neptune")
    monkeypatch.setattr("warmstart.methods.track.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'warmstart\[mlflow\]'"):
        ws.track(str(run), to="mlflow")
    monkeypatch.undo()
    writer.write_status(run, "running", step=1)
    with pytest.raises(UserError, match="in progress"):
        ws.track(str(run), to="mlflow")
    assert not (run / layout.TRACKED).exists()


@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of SQLAlchemy
def test_what_fails_half_way_is_noted_and_finished_later(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.tracking.MlflowClient, "log_artifact", full)
        with pytest.raises(UserError, match="No space left"):
            ws.track(str(run), to="mlflow", project="proof")
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("proof").experiment_id
    (half,) = client.search_runs([number])
    assert half.info.status == "FAILED"
    assert json.loads((run / layout.TRACKED).read_text())["mlflow"]["unfinished"] == half.info.run_id

    sent = ws.track(str(run), to="mlflow", project="proof")
    (whole,) = client.search_runs([number])
    assert whole.info.run_id == half.info.run_id and whole.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(whole.info.run_id, "val/accuracy")]
    assert len(steps) == len(set(steps)) == 3, "no number stands there twice"
    assert "unfinished" not in json.loads((run / layout.TRACKED).read_text())["mlflow"]
    resolved = json.loads((run / layout.RESOLVED).read_text())
    assert whole.info.start_time == round(datetime.fromisoformat(resolved["created"]).timestamp() * 1000)
    assert whole.info.end_time >= whole.info.start_time and whole.info.run_id in sent.place


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_wandb_goes_on_under_the_same_id(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "Image", full)
        with pytest.raises(UserError, match="No space left"):
            ws.track(str(run), to="wandb")
    name = json.loads((run / layout.TRACKED).read_text())["wandb"]["unfinished"]
    sent = ws.track(str(run), to="wandb")
    assert name in sent.place and "unfinished" not in json.loads((run / layout.TRACKED).read_text())["wandb"]
