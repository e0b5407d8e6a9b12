"""verify-resume: says yes where it is so, and names the first thing that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from warmstart.cli import main
from warmstart.config import io
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.reader import Run
from warmstart.verify import resume
from warmstart.verify.differences import first_difference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pair(small_settings: dict[str, Any], tmp_path: Path) -> tuple[Run, Run]:
    """The same run twice."""
    made = []
    for name in ("first", "second"):
        values = {**small_settings, "epochs": 2, "log_every": "1steps", "output_dir": str(tmp_path / name)}
        made.append(Run(train.finetune(io.load(values))))
    assert first_difference(*made) is None
    return made[0], Run(made[1].path)


def rewrite(run: Run, step: int, name: str, content: bytes) -> None:
    """Change a file of a checkpoint so that its MANIFEST knows it."""
    folder = run.checkpoint(step)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != layout.MANIFEST}
    writer.write_checkpoint(run.path, step, {**files, name: content})
    writer.write_text(run.path / layout.CHECKPOINTS / layout.LAST, f"{layout.checkpoint_name(6)}\n")


def change_row(run: Run, name: str, number: int, **changed: Any) -> None:
    path = run.path / name
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changed})
    path.write_text("\n".join(lines) + "\n")


def test_the_first_row_that_differs_is_named(pair: tuple[Run, Run]) -> None:
    change_row(pair[1], layout.EVALS, 6, accuracy=2.0)
    change_row(pair[1], layout.METRICS, 2, grad_norm=7.5, seconds=99)
    found = first_difference(pair[0], Run(pair[1].path))
    assert found is not None and (found.step, found.what, found.second) == (2, "grad_norm", "7.5")
    assert (
        found.where == "row 2 of metrics.jsonl"
        and "step 2, row 2 of metrics.jsonl, grad_norm: " in found.text()
    )


def test_a_missing_row_is_named(pair: tuple[Run, Run]) -> None:
    path = pair[1].path / layout.METRICS
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    found = first_difference(pair[0], Run(pair[1].path))
    assert found is not None and found.second == "absent" and found.what == "the row"


@pytest.mark.parametrize("name", [layout.MODEL, layout.STATE_TENSORS])
def test_a_tensor_that_differs_is_named(pair: tuple[Run, Run], name: str, tmp_path: Path) -> None:
    tensors = load_file(pair[1].checkpoint(6) / name)
    key = sorted(tensors)[5]
    tensors[key] = (
        torch.nextafter(tensors[key], torch.tensor(9.0, dtype=tensors[key].dtype))
        if (tensors[key].is_floating_point())
        else tensors[key] + 1
    )
    save_file(tensors, tmp_path / "changed")
    rewrite(pair[1], 6, name, (tmp_path / "changed").read_bytes())
    found = first_difference(pair[0], Run(pair[1].path))
    assert found is not None and (found.step, found.where, found.what) == (6, name, key)


def test_a_counter_and_a_pointer_that_differ_are_named(pair: tuple[Run, Run]) -> None:
    record = json.loads((pair[1].checkpoint(6) / layout.STATE).read_text())
    record["state"]["seconds"] += 1
    rewrite(pair[1], 6, layout.STATE, json.dumps(record).encode())
    assert first_difference(pair[0], Run(pair[1].path)) is None, "times differ in any case"
    record["state"]["plateau"]["num_bad"] += 1
    rewrite(pair[1], 6, layout.STATE, json.dumps(record).encode())
    found = first_difference(pair[0], Run(pair[1].path))
    assert found is not None and found.what == "state.plateau.num_bad"
    writer.mark_best(pair[1].path, 3 if pair[0].pointer(layout.BEST) == 6 else 6)
    found = first_difference(pair[0], Run(pair[1].path))
    assert found is not None and found.what == layout.BEST


def test_a_run_that_is_killed_and_resumed_is_the_same(
    small_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole proof by the command line, for the settings that a run has left: three processes, one killed."""
    monkeypatch.chdir(tmp_path)
    given = {**small_settings, "epochs": 1, "augment": "strong", "dropout": 0.3, "ema": 0.7}
    own = train.finetune(io.load({**given, "output_dir": "own", "save_as": "best.pt"})) / layout.CONFIG
    code = main(["verify-resume", str(own), "--epochs", "50", "--steps", "40", "--keep-in", "kept", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["is_equal"] and told["difference"] is None and told["steps"] == 40
    assert 1 <= told["killed_after"] < 40 and told["resumed_from"] <= told["killed_after"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "kept", "own"]
    rows = (tmp_path / "kept" / "resumed" / layout.METRICS).read_text()
    assert '"kind": "resume"' in rows, "it was really interrupted"
    assert set(told["hashes"].values()) and "13 epochs" in told["coverage"]


def test_what_cannot_be_proved_is_refused(small_settings: dict[str, Any], tmp_path: Path) -> None:
    loaded = io.load({**small_settings})
    with pytest.raises(UserError, match="--steps 3"):
        resume.verify_resume(loaded, steps=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        resume.verify_resume(loaded, keep_in=str(tmp_path / "full"))
    memory = loaded.config.data.model_copy(update={"path": "memory:1a2b"})
    inside = io.Loaded(loaded.config.model_copy(update={"data": memory}), {}, ())
    with pytest.raises(UserError, match="objects of this process"):
        resume.verify_resume(inside)


def test_a_difference_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from warmstart import api
    from warmstart.verify.differences import Difference

    def proof(**_: Any) -> resume.Proof:
        found = Difference(7, "model.safetensors", "fc.weight", "0.5 (element 3)", "0.25 (element 3)")
        return resume.Proof(24, 12, 8, {}, "1 epochs", found, False, None)

    monkeypatch.setattr(api, "verify_resume", proof)
    assert main(["verify-resume", "any.yaml"]) == 1
    told: Callable[[], str] = lambda: capsys.readouterr().out  # noqa: E731
    text = told()
    assert "step 7, model.safetensors, fc.weight: 0.5 (element 3) and 0.25 (element 3)" in text
    assert "two straight runs differ as well" in text
