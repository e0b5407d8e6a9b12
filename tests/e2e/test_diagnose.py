"""`warmstart diagnose` on runs with real faults: the cause is named, and what it writes runs as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import warmstart as ws
from warmstart.cli import main


def finetune(small_settings, folder, **settings):
    ws.finetune(**{**small_settings, "pictures": False, **settings}, output_dir=str(folder))
    return folder


def test_patience_of_one_goes_on_by_continue(small_settings, tmp_path: Path, capsys) -> None:
    """A rate of nothing makes no new best, so patience ends the run at its second validation."""
    run = finetune(
        small_settings,
        tmp_path / "run",
        patience=1,
        epochs=6,
        lr=1e-12,
        eval_every="1steps",
        scheduler="none",
    )
    target = tmp_path / "next.yaml"
    assert main(["diagnose", str(run), "--write", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["id"] == "stopped_early"
    command = told["command"]
    assert command == ["warmstart", "continue", str(run), "--config", str(target)]
    assert main([*command[1:], "--output-dir", str(tmp_path / "child"), "--lr", "1e-3", "--json"]) == 0
    child = json.loads((tmp_path / "child" / "status.json").read_text(encoding="utf-8"))
    parent = json.loads((run / "status.json").read_text(encoding="utf-8"))
    assert child["step"] > parent["step"]


def test_a_rate_that_is_far_too_high_starts_again_by_finetune(small_settings, tmp_path: Path, capsys) -> None:
    run = finetune(small_settings, tmp_path / "run", lr=0.3, epochs=4)
    target, picture = tmp_path / "next.yaml", tmp_path / "why.png"
    assert main(["diagnose", str(run), "--write", str(target), "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "the learning rate is too high" in out.splitlines()[0]
    assert f"next: warmstart finetune --config {target}" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["finetune", "--config", str(target), "--output-dir", str(tmp_path / "next"), "--json"]) == 0
    after = ws.show(str(tmp_path / "next"))
    assert after["origins"]["optim.lr"] == str(target)
    assert worst_loss(tmp_path / "next") < worst_loss(run)


def worst_loss(run: Path) -> float:
    lines = (run / "evals.jsonl").read_text(encoding="utf-8").splitlines()
    return max(r["loss"] for r in map(json.loads, lines) if r["split"] == "val" and r["step"] > 0)


def test_histories_and_wrong_requests(tmp_path: Path, capsys) -> None:
    history = tmp_path / "history.json"
    history.write_text(json.dumps({"val_loss": [1, 0.5, 0.4], "train_loss": [1, 0.5, 0.4]}), encoding="utf-8")
    assert main(["diagnose", str(history), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["program"] == "ce7454"
    assert main(["diagnose", str(history), "--write", str(tmp_path / "next.yaml")]) == 2
    assert "whose settings nobody knows" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_no_torch(small_settings, tmp_path: Path) -> None:
    """A process of its own: the question is what it imports."""
    run = finetune(small_settings, tmp_path / "runs" / "one", epochs=1)
    code = (
        "import sys, warmstart; [warmstart.diagnose(name) for name in sys.argv[1:]];"
        " assert not {'torch', 'timm', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(run), str(run.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
