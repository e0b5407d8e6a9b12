"""reproduce: a recorded run done again gives the same numbers; where it does not, what differs first is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import forked
from warmstart.cli import main
from warmstart.config import io
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.reader import Run
from warmstart.verbs import continuing
from warmstart.verify.again import Moved, check_repeatable, prepare_again
from warmstart.verify.reproduce import Other, Reproduction, reproduce

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.verify.processes.start", forked.start)


def trained(settings: dict[str, Any], folder: Path, **more: Any) -> Run:
    values = {**settings, "epochs": 2, "log_every": "1steps", "output_dir": str(folder), **more}
    return Run(train.finetune(io.load(values)))


def change(path: Path, **changed: Any) -> None:
    """Fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_child_with_an_older_best_is_the_same_to_the_bit(
    small_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The whole way by the command line. The best of its parent, which the child took along, was given up since; the
    versions that it recorded are others; and a phase would come after it."""
    from warmstart.engine.continuing.continue_run import Child, find_parent

    monkeypatch.chdir(tmp_path)
    hard = {"augment": "strong", "dropout": 0.3, "ema": 0.7, "keep_checkpoints": 9}
    parent = trained(small_settings, Path("parent"), **hard, epochs=3)
    writer.mark_best(parent.path, 3)
    child = Child(find_parent("parent", "all"), later=[{"name": "more"}])
    loaded = io.load({"epochs": 5, "output_dir": "child"}, None, None, child.parent.settings)
    child.check(loaded)
    made = train.finetune(loaded, beginning=child)
    continuing.finish(made, "cpu")
    old = Run(made)
    assert old.checkpoint(3).is_dir() and any(row.get("kind") == "parent" for row in old.evals.rows)
    shutil.rmtree(old.checkpoint(3))
    versions = {**old.resolved["versions"], "torch": "1.0"}
    change(made / layout.RESOLVED, versions=versions)
    assert main(["reproduce", "child", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["is_equal"] and told["is_whole"] and told["until"] == told["total"] == 15
    assert told["num_rows"] == 17 and told["worst"][1] == told["worst"][2] and told["folder"] is None
    assert [(other["what"], other["then"]) for other in told["environment"]] == [("torch", "1.0")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "parent"]


def test_what_differs_first_is_named(small_settings: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """Data and weights lie elsewhere by now, and a number of the record is not the one that comes out."""
    start = trained(small_settings, tmp_path / "start").checkpoint(6) / layout.MODEL
    shutil.copytree(small_settings["data"], tmp_path / "data")
    shutil.copy(start, tmp_path / "start.safetensors")
    own = {**small_settings, "data": str(tmp_path / "data"), "weights": str(tmp_path / "start.safetensors")}
    run = trained(own, tmp_path / "run", epochs=200, eval_every=100, save_every=100)
    rows = (run.path / layout.METRICS).read_text().splitlines()
    number = next(number for number, row in enumerate(rows) if json.loads(row)["step"] == 3)
    assert "grad_norm" in rows[number]
    rows[number] = json.dumps({**json.loads(rows[number]), "grad_norm": 7.5})
    (run.path / layout.METRICS).write_text("\n".join(rows) + "\n")
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "start.safetensors").rename(tmp_path / "weights.safetensors")
    places = ["--data", str(tmp_path / "moved"), "--weights", str(tmp_path / "weights.safetensors")]
    kept = tmp_path / "again"
    command = ["reproduce", str(run.path), *places, "--steps", "7", "--output-dir", str(kept)]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert f"step 3, row {number + 1} of metrics.jsonl, grad_norm: 7.5 and " in text
    assert "nothing is known to be another thing than then" in text and str(kept) in text
    new = Run(kept)
    assert new.resolved["again"]["run"] == str(run.path) and new.resolved["data"]["path"].endswith("moved")
    assert 7 <= new.status["step"] < 600, "it stopped where it was asked to"


def test_steps_before_the_first_row_of_training_go_on_to_it(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    run = trained(small_settings, tmp_path / "run", log_every="2steps")
    found = reproduce(str(run.path), steps=1)
    assert found.is_equal and found.until == 2 and not found.is_whole
    assert "--steps 1 ends before the first row of training: compared up to that, of step 2" in found.text()
    for steps in (0, -5):
        with pytest.raises(UserError, match=f"--steps {steps} compares nothing"):
            reproduce(str(run.path), steps=steps)


def test_what_cannot_be_done_again_is_refused(small_settings: dict[str, Any], tmp_path: Path) -> None:
    run = trained(small_settings, tmp_path / "run", epochs=1)
    new = tmp_path / "new"

    def refused(words: str, moved: Moved = Moved()) -> None:  # noqa: B008 (frozen)
        with pytest.raises(UserError, match=words):
            check_repeatable(Run(run.path))
            prepare_again(Run(run.path), new, moved)
        assert not new.exists()

    refused("are not at .*gone any more", Moved(data=str(tmp_path / "gone")))
    resolved = json.loads((run.path / layout.RESOLVED).read_text())
    change(run.path / layout.RESOLVED, blend={})
    refused("is a blend of weights: it has no steps")
    (run.path / layout.RESOLVED).write_text(json.dumps(resolved))
    config = (run.path / layout.CONFIG).read_text()
    (run.path / layout.CONFIG).write_text(config.replace(str(small_settings["data"]), "memory:1a2b"))
    refused("data are objects of this process")
    (run.path / layout.CONFIG).write_text(config)
    status = (run.path / layout.STATUS).read_text()
    change(run.path / layout.STATUS, state="running", host="elsewhere", pid=1)
    refused("is still running .* on elsewhere")
    (run.path / layout.STATUS).write_text(status)
    for name in (layout.METRICS, layout.EVALS):
        (run.path / name).unlink()
    refused("has trained nothing")


def test_other_weights_are_refused(small_settings: dict[str, Any], tmp_path: Path) -> None:
    start = trained(small_settings, tmp_path / "start", epochs=1)
    file = tmp_path / "start.safetensors"
    shutil.copy(start.checkpoint(3) / layout.MODEL, file)
    run = trained({**small_settings, "weights": str(file)}, tmp_path / "run", epochs=1)
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    with pytest.raises(UserError, match="holds other weights than"):
        prepare_again(run, tmp_path / "new", Moved())
    file.unlink()
    with pytest.raises(UserError, match=r"began with the weights of .*start.safetensors, which"):
        prepare_again(run, tmp_path / "new", Moved())
    of_run = trained({**small_settings, "weights": str(start.path)}, tmp_path / "second", epochs=1)
    prepare_again(of_run, tmp_path / "new", Moved())
    assert Run(tmp_path / "new").config["model"]["weights"] == f"{start.path}@3", "the step that it was then"


def test_changed_data_are_the_error(small_settings: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(small_settings["data"], tmp_path / "data")
    run = trained({**small_settings, "data": str(tmp_path / "data")}, tmp_path / "run", epochs=1)
    next((tmp_path / "data" / "ant").iterdir()).unlink()
    with pytest.raises(UserError, match=r"(?s)run cannot be done again: the data in .* have changed since"):
        reproduce(str(run.path))


def test_words_of_a_difference() -> None:
    from warmstart.verify.differences import Difference

    found = Reproduction(
        run="run",
        until=50,
        total=100,
        is_whole=False,
        num_rows=12,
        difference=Difference(7, "row 3 of evals.jsonl", "loss", "0.5", "0.25"),
        environment=(Other("torch", "2.0", "2.1"), Other("device", "cuda:0", "cpu")),
        warnings=("files of the data were written after the run was started",),
        repeats=False,
        metric="accuracy",
        worst=(40, 0.9, 0.88),
        notes=("the run itself is killed: it was compared up to its last row, of step 50",),
        folder=None,
    )
    text = found.text()
    assert text.startswith("NOT the same.") and "step 7, row 3 of evals.jsonl, loss: 0.5 and 0.25" in text
    assert "val accuracy is apart by at most 0.02: 0.9000 then, 0.8800 now, step 40" in text
    causes = found.causes()
    assert "do not give the same numbers twice" in causes[0]
    assert causes[1:3] == ["torch 2.0 then, 2.1 now", "device cuda:0 then, cpu now"]
    assert "files of the data were written" in causes[3] and text.endswith("of step 50")
    assert found.to_json()["causes"] == causes
