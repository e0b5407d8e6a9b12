"""`continue` on small real runs: what is kept is kept, what begins anew does, the parent's best is the bar."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import warmstart
from warmstart import api
from warmstart.cli import main
from warmstart.config import io
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.results import DryRunResult, FinetuneResult, PhasesResult
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.verbs import continuing

pytestmark = pytest.mark.usefixtures("one_thread")

Finetune = Callable[..., Run]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder, and the runs in it by their settings: a parent is never changed, so tests may have copies of one."""
    return tmp_path_factory.mktemp("parents"), {}


@pytest.fixture
def finetune(
    small_settings: dict[str, Any], tmp_path: Path, parents: tuple[Path, dict[str, Path]]
) -> Finetune:
    """3 steps of 8 images per epoch, 2 epochs at a constant rate, in tmp_path/NAME."""

    def start(name: str, **given: Any) -> Run:
        folder, known = parents
        key = str(sorted(given.items()))
        if key not in known:
            place = folder / str(len(known))
            own = {
                "epochs": 2,
                "scheduler": "none",
                "log_every": "1steps",
                "lr": 0.003,
                "output_dir": str(place),
            }
            known[key] = train.finetune(io.load({**small_settings, **own, **given}))
        return Run(Path(shutil.copytree(known[key], tmp_path / name)))

    return start


@pytest.fixture
def go_on(tmp_path: Path) -> Finetune:
    def start(parent: Any, name: str = "child", **given: Any) -> Run:
        result = warmstart.continue_run(
            str(getattr(parent, "path", parent)), output_dir=str(tmp_path / name), **given
        )
        assert isinstance(result, FinetuneResult)
        return Run(Path(result.run))

    return start


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights(run: Run, step: int | None = None) -> dict[str, torch.Tensor]:
    last = run.pointer(layout.LAST) if step is None else step
    assert last is not None
    return load_file(run.checkpoint(last) / layout.MODEL)


def state(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / layout.STATE_TENSORS)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def vals(run: Run, metric: str = "accuracy") -> dict[int, float]:
    return {
        row["step"]: row[metric]
        for row in run.evals.rows
        if row["split"] == "val" and row.get("kind") != "evaluate"
    }


def kept(run: Run) -> dict[str, str]:
    return {what: how for what, how, _ in run.resolved["continued"]["kept"]}


# ---- keep all


STAGES = {  # of which the parent's last step begins the last one
    "unfreeze": "0:head,4steps:backbone>2@1e-3,6steps:all",
    "stage_warmup": "3steps",
    "layer_decay": 0.8,
}


@pytest.mark.parametrize(
    "given",
    [{}, {"ema": 0.9, "patience": 9, "dropout": 0.3}, STAGES],
    ids=["plain", "ema", "stages"],
)
def test_more_epochs_are_the_run_that_was_never_finished(
    finetune: Finetune, go_on: Finetune, given: dict[str, Any]
) -> None:
    straight = finetune("straight", **given, epochs=4)
    parent = finetune("parent", **given)
    before = tree(parent.path)
    child = go_on(parent, epochs=4)
    assert tree(parent.path) == before
    assert equal(weights(child), weights(straight))
    assert equal(state(child, 12), state(straight, 12))
    assert child.pointer(layout.BEST) == straight.pointer(layout.BEST)
    assert equal(weights(child, child.pointer(layout.BEST)), weights(straight, straight.pointer(layout.BEST)))
    rows = [row for row in child.metrics.rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [7, 8, 9, 10, 11, 12]
    same = {row["step"]: row["loss"] for row in straight.metrics.rows if row["kind"] == "train"}
    assert all(row["loss"] == same[row["step"]] for row in rows)
    assert {step: value for step, value in vals(straight).items() if step >= 6} == {
        step: value for step, value in vals(child).items() if step >= 6
    }
    saved = [json.loads((run.checkpoint(12) / layout.STATE).read_text()) for run in (child, straight)]
    for name in (
        "step",
        "epoch",
        "window",
        "best_value",
        "best_step",
        "num_bad",
        "plateau",
        "stage",
        "stage_step",
    ):
        assert saved[0]["state"][name] == saved[1]["state"][name], name


def test_stages_are_kept_with_all_and_begin_anew_without(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", **STAGES)
    kept_all = go_on(parent, "all", epochs=3)
    assert ["stage", "kept", "3 of 3, since step 6"] in kept_all.resolved["continued"]["kept"]
    changed = go_on(parent, "changed", epochs=3, unfreeze="0:head,7steps:all")
    assert ["stage", "new", "--unfreeze is another one here"] in changed.resolved["continued"]["kept"]
    anew = go_on(parent, "anew", keep="weights", epochs=3)
    groups = [
        [len(row["lrs"]) for row in run.metrics.rows if row["kind"] == "train"]
        for run in (kept_all, changed, anew)
    ]
    assert groups == [[10, 10, 10], [2, 10, 10], [2, 2, 2, 2, 6, 6, 10, 10, 10]]


def test_a_child_resumes_to_the_bit(
    finetune: Finetune, go_on: Finetune, interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    parent = finetune("parent")
    whole = go_on(parent, "whole", epochs=4)
    interrupt_at(8)
    with pytest.raises(UserError, match="interrupted at step 8 of 12"):
        go_on(parent, "cut", epochs=4)
    api.resume(str(tmp_path / "cut"))
    cut = Run(tmp_path / "cut")
    assert equal(weights(cut), weights(whole))
    assert cut.pointer(layout.BEST) == whole.pointer(layout.BEST)
    assert cut.status["improved_by"] == whole.status["improved_by"]


@pytest.mark.parametrize("keep", ["all", "optimizer", "weights"])
def test_a_child_that_ended_before_its_first_checkpoint_begins_again_as_recorded(
    finetune: Finetune, go_on: Finetune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keep: str
) -> None:
    """State, bar and the parent's older best come from the parent once more."""
    from warmstart.engine import loop

    parent = finetune("parent", epochs=3, select_by="loss", ema=0.5)
    whole = go_on(parent, "whole", keep=keep, epochs=4)

    def dies(*_: Any) -> None:
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dies)
        with pytest.raises(MemoryError):
            go_on(parent, "cut", keep=keep, epochs=4)
    assert all(step < 9 for step in Run(tmp_path / "cut").checkpoint_steps())
    cut = Run(Path(api.resume(str(tmp_path / "cut")).run))
    last = whole.pointer(layout.LAST)
    assert (
        last is not None
        and equal(weights(cut), weights(whole))
        and equal(state(cut, last), state(whole, last))
    )
    assert cut.pointer(layout.BEST) == whole.pointer(layout.BEST)
    assert vals(cut, "loss") == vals(whole, "loss")
    for step in cut.checkpoint_steps():
        (cut.checkpoint(step) / layout.MODEL).write_bytes(b"")
    (cut.path / layout.STATUS).unlink()
    with pytest.raises(UserError) as error:
        api.resume(str(cut.path))
    lineage = cut.resolved["parent"]
    command = f"`warmstart continue {parent.path}@{lineage['step']} --keep {keep} --config {cut.path}"
    assert command in str(error.value)
    shutil.rmtree(cut.path / layout.CHECKPOINTS)
    shutil.move(parent.path, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the parent: .* does not exist"):
        api.resume(str(cut.path))


def test_lineage_diff_and_origins_are_recorded(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", dropout=0.1)
    child = go_on(parent, epochs=3, dropout=0.4, patience=7)
    lineage = child.resolved["parent"]
    assert (lineage["run"], lineage["step"], lineage["keep"]) == (str(parent.path), 6, "all")
    assert lineage["bar"]["value"] == max(vals(parent).values()) and lineage["bar"]["origin"] == "recorded"
    changes = {
        row["setting"]: (row["old"], row["new"], row["origin"])
        for row in child.resolved["continued"]["changes"]
    }
    assert changes == {
        "train.epochs": (2, 3, "flag"),
        "model.dropout": (0.1, 0.4, "flag"),
        "train.patience": (None, 7, "flag"),
    }
    origins = child.resolved["origins"]
    assert origins["optim.lr"] == origins["data.path"] == "parent" and origins["train.epochs"] == "flag"
    assert "lr: 0.003  # parent" in (child.path / layout.CONFIG).read_text()
    log = (child.path / layout.LOG).read_text()
    assert "changed settings" in log and "model.dropout" in log and "of the parent" in log
    assert kept(child) == {
        "weights": "kept",
        "optimizer state": "kept",
        "step and epoch": "kept",
        "schedule": "kept",
        "random numbers": "kept",
        "early stopping": "kept",
        "best": "kept",
    }


def test_what_more_epochs_do_to_a_cosine_is_said(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", scheduler="cosine", lr=0.004)
    child = go_on(parent, epochs=4)
    log = (child.path / layout.LOG).read_text()
    assert "rate at step 6: 0 under the old schedule, 0.002 under the new" in log  # half way through 12 steps
    assert (
        "the rate climbs back at step 6, from 0.000268 to 0.002: cosine is computed anew over 12 steps" in log
    )
    rows = {row["step"]: row["lr"] for row in child.metrics.rows if row["kind"] == "train"}
    assert rows[7] == pytest.approx(0.002)
    # A constant rate at the height of the last one: said, and no warning.
    low = go_on(parent, "low", epochs=3, scheduler="none", lr=child.resolved["continued"]["rates"]["last"])
    log = (low.path / layout.LOG).read_text()
    assert "rate at step 6: 0 under the old schedule, 0.000268 under the new" in log and "climbs" not in log


def test_a_new_rate_at_the_kept_step(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent")
    child = go_on(parent, epochs=3, lr=0.0015)
    rates = [row["lr"] for row in child.metrics.rows if row["kind"] == "train"]
    assert rates == [0.0015] * 3
    assert (
        "rate at step 6: 0.003 under the old schedule, 0.0015 under the new"
        in (child.path / layout.LOG).read_text()
    )


def test_a_new_momentum_is_in_force(finetune: Finetune, go_on: Finetune) -> None:
    """What a group was set to is no state: the child's own value counts."""
    parent = finetune("parent", optimizer="sgd", momentum=0.9)
    same, other = go_on(parent, "same", epochs=3), go_on(parent, "other", epochs=3, momentum=0.1)
    assert not equal(weights(same), weights(other))


def test_recovery_events_are_the_childs_own(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=4, eval_every="1steps")
    assert parent.status["recovery_events"] > 0
    child = go_on(parent, epochs=5, lr=1e-12)
    assert child.status["recovery_events"] == 0
    assert json.loads((child.checkpoint(15) / layout.STATE).read_text())["state"]["num_recoveries"] == 0


# ---- keep weights


def test_keep_weights_begins_anew_from_the_best(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3)
    best = parent.pointer(layout.BEST)
    child = go_on(parent, keep="weights", epochs=1)
    assert equal(weights(child, 0), weights(parent, best))
    assert not [name for name in state(child, 0) if name.startswith("optimizer.")]
    assert child.resolved["pace"]["total_steps"] == 3 and child.resolved["pace"]["first_step"] == 0
    assert child.resolved["parent"]["step"] == best
    assert kept(child)["optimizer state"] == kept(child)["schedule"] == "new"
    assert vals(child)[0] == child.resolved["parent"]["bar"]["value"] == vals(parent)[best]


def test_a_worse_first_epoch_is_no_new_best(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=5, lr=0.001)
    child = go_on(parent, keep="weights", epochs=2, lr=3.0)  # far too high: it can only get worse
    bar = max(vals(parent).values())
    assert all(value < bar for step, value in vals(child).items() if step > 0)
    log = (child.path / layout.LOG).read_text()
    assert "new best" not in log and "IMPROVED" not in log
    worst = vals(child)
    for step in (3, 6):
        assert f"NOT better than the parent ({worst[step] - bar:+.4f})" in log
    assert child.pointer(layout.BEST) == 0 and child.status["best_value"] == bar
    assert child.status["improved_by"] < 0


def test_improvement_is_said_at_every_validation_and_in_the_result(
    finetune: Finetune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = finetune("parent", epochs=1, lr=0.001, select_by="loss")
    command = ["continue", str(parent.path), "--keep", "weights", "--epochs", "8"]
    assert main([*command, "--output-dir", str(tmp_path / "child"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["parent"]
    child = Run(tmp_path / "child")
    bar, best = vals(parent, "loss")[3], min(vals(child, "loss").values())
    assert best < bar
    assert result["improved"] and result["gain"] == pytest.approx(bar - best) and result["bar"] == bar
    log = (child.path / layout.LOG).read_text()
    assert f"IMPROVED by {bar - best:.4f}, new best" in log
    assert f"IMPROVED by {bar - best:.4f}: val loss {best:.4f}" in log
    assert main(["show", str(child.path)]) == 0


def test_a_step_chosen_by_hand_still_has_the_bar_of_the_best(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3, select_by="loss", save_every="1steps")
    best, last = parent.pointer(layout.BEST), parent.pointer(layout.LAST)
    other = next(step for step in parent.checkpoint_steps() if step != best)
    child = go_on(f"{parent.path}@{other}", keep="weights", epochs=1, lr=1e-9, save_every="1epochs")
    assert last is not None and equal(weights(child, 0), weights(parent, other))
    bar = child.resolved["parent"]["bar"]
    assert (bar["value"], bar["step"]) == (vals(parent, "loss")[best], best)
    assert child.pointer(layout.BEST) is None  # nothing here is better than the parent
    assert child.status["best_value"] is None and child.status["improved_by"] <= 0


def test_other_preprocessing_measures_the_bar_again(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3)
    child = go_on(parent, keep="weights", epochs=1, image_size="20")
    bar = child.resolved["parent"]["bar"]
    assert bar["origin"] == "measured on this run's val" and bar["value"] == vals(child)[0]
    assert bar["step"] == parent.pointer(layout.BEST)
    # From the last step, whose weights are others than the best's.
    parent = finetune("late", epochs=3, select_by="loss")
    best, last = parent.pointer(layout.BEST), parent.pointer(layout.LAST)
    assert best != last
    hybrid = go_on(parent, "hybrid", keep="optimizer", epochs=1, image_size="20")
    from_best = go_on(f"{parent.path}@{best}", "from_best", keep="weights", epochs=1, image_size="20")
    assert hybrid.resolved["parent"]["bar"]["value"] == vals(from_best, "loss")[0] != vals(hybrid, "loss")[0]


def test_a_grandchild_has_the_bar_of_the_best_of_all(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3)
    bar = max(vals(parent).values())
    child = go_on(parent, "child", keep="optimizer", epochs=1, lr=3.0)
    grandchild = go_on(child, "grandchild", keep="optimizer", epochs=1, lr=1e-9)
    assert grandchild.resolved["parent"]["bar"]["value"] == bar
    assert grandchild.resolved["parent"]["run"] == str(child.path)


def test_a_bar_that_no_weights_here_reached_has_no_best(finetune: Finetune, go_on: Finetune) -> None:
    """The start of a grandchild is not the best where its own parent never beat the bar."""
    parent = finetune("parent", epochs=3, select_by="loss")
    ruined = go_on(f"{parent.path}@9", "ruined", keep="optimizer", epochs=1, lr=3.0)
    grandchild = go_on(ruined, "grandchild", epochs=2, lr=1e-9)
    assert ruined.pointer(layout.BEST) is None, "it is worse than its parent"
    assert grandchild.pointer(layout.BEST) is None and grandchild.status["best_step"] is None
    assert grandchild.resolved["parent"]["bar"] == ruined.resolved["parent"]["bar"]


def test_without_the_averages_the_start_is_not_the_best(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3, ema=0.5, lr=1e-4, select_by="loss")
    assert parent.pointer(layout.BEST) == 9, "the best is the last"
    child = go_on(parent, "child", epochs=4, lr=1e-9, ema="none")
    assert child.status["best_step"] != 9


# ---- keep optimizer


def test_hybrid_keeps_the_moments_and_counts_anew(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", scheduler="cosine")
    child = go_on(parent, keep="optimizer", epochs=1, lr=0.001)
    assert equal(weights(child, 0), weights(parent, 6))
    old = {name: tensor for name, tensor in state(parent, 6).items() if name.startswith("optimizer.")}
    new = {name: tensor for name, tensor in state(child, 0).items() if name.startswith("optimizer.")}
    assert old and equal(old, new)
    rows = [row for row in child.metrics.rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0]["lr"] == 0.001
    assert kept(child)["optimizer state"] == "kept" and kept(child)["step and epoch"] == "new"
    assert "moments of 18 of 18 parameters" in (child.path / layout.LOG).read_text()


def test_averaged_weights_are_left_where_the_moments_belong_to_others(
    finetune: Finetune, go_on: Finetune
) -> None:
    parent = finetune("parent", ema=0.9)
    raw = {name.removeprefix("raw."): t for name, t in state(parent, 6).items() if name.startswith("raw.")}
    child = go_on(parent, keep="optimizer", ema="none", epochs=1)
    assert equal(weights(child, 0), raw) and kept(child)["averaged weights"] == "NOT kept"
    fresh = go_on(parent, "fresh", keep="optimizer", epochs=1)
    assert equal(weights(fresh, 0), raw) and kept(fresh)["averaged weights"] == "new"


# ---- document 002

DOCUMENT = """\
experiment:
  name: lmsa_continue_v2
  description: Continue from best model (0.6889) with enhanced regularization

model:
  dropout: 0.20  # up from 0.15

training:
  epochs: 3
  learning_rate: 4e-4  # down
  weight_decay: 2e-4
  early_stopping_patience: 30
"""


@pytest.mark.parametrize(
    ("flags", "keep"),
    [
        ("--reset_optimizer", "weights"),
        ("", "all"),
        ("--mode preserve", "all"),
        ("--mode hybrid", "optimizer"),
        ("--mode=reset", "weights"),
    ],
)
def test_the_commands_of_document_002(
    finetune: Finetune, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, keep: str
) -> None:
    parent = finetune("parent")
    config = tmp_path / "lmsa_continue_from_best.yaml"
    config.write_text(DOCUMENT)
    command = ["continue", "--checkpoint", str(parent.path), "--config", str(config), "--device", "cpu"]
    command += [*flags.split(), "--continue-info", "--runs-dir", str(tmp_path / "runs")]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert f"alias: --checkpoint {parent.path} is {parent.path}" in told
    assert "alias: training.learning_rate is optim.lr" in told
    assert "alias: experiment.description has no effect here" in told
    child = Run(tmp_path / "runs" / "lmsa_continue_v2")
    assert child.resolved["parent"]["keep"] == keep
    settings = child.config
    assert settings["optim"]["lr"] == 4e-4 and settings["optim"]["weight_decay"] == 2e-4
    assert settings["model"]["dropout"] == 0.2 and settings["train"]["patience"] == 30
    changes = {row["setting"]: (row["old"], row["new"]) for row in child.resolved["continued"]["changes"]}
    assert changes["optim.lr"] == (0.003, 0.0004) and changes["train.patience"] == (None, 30)
    info = yaml.safe_load((child.path / layout.CONTINUE_INFO).read_text())
    assert info["reset_optimizer"] is (keep == "weights") and info["start_epoch"] == (
        2 if keep == "all" else 0
    )
    assert info["mode"] == {"all": "preserve", "optimizer": "hybrid", "weights": "reset"}[keep]
    assert info["continued_from"].startswith(str(parent.path)) and 0 < info["previous_best_f_score"] <= 1


def test_null_patience_is_none_and_dice_weight_loads(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "training: {early_stopping_patience: null, learning_rate: 4e-4}\nloss: {dice_weight: 1.5}\n"
    )
    found = io.flatten(io.parse_yaml(config.read_text(), "a", []), "a", problems := [])
    assert problems == []
    assert found.values == {"train.patience": None, "optim.lr": "4e-4", "task.dice_weight": 1.5}


def test_without_being_asked_no_info_is_written(finetune: Finetune, go_on: Finetune) -> None:
    child = go_on(finetune("parent"), epochs=3)
    assert not (child.path / layout.CONTINUE_INFO).exists()


# ---- phases


def test_phases_are_children_of_one_another(
    finetune: Finetune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = finetune("parent")
    config = tmp_path / "phases.yaml"
    config.write_text(
        "optim: {weight_decay: 0.002}\n"
        "phases:\n"
        "- {keep: weights, train: {epochs: 1}, optim: {lr: 1e-3}}\n"
        "- {training: {epochs: 2, learning_rate: 1e-4}}\n"
    )
    command = ["continue", str(parent.path), "--config", str(config), "--keep", "weights"]
    assert main([*command, "--output-dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "phases" in shown and str(tmp_path / "out" / "phase2") in shown
    one, two = Run(tmp_path / "out" / "phase1"), Run(tmp_path / "out" / "phase2")
    assert one.resolved["parent"]["run"] == str(parent.path) and two.resolved["parent"]["run"] == str(
        one.path
    )
    assert (one.config["optim"]["lr"], two.config["optim"]["lr"]) == (1e-3, 1e-4)
    assert one.config["optim"]["weight_decay"] == two.config["optim"]["weight_decay"] == 0.002
    assert two.resolved["origins"]["optim.lr"] == f"{config}, phase 2"
    assert two.resolved["pace"]["total_steps"] == 6


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("phases: 3", "phases is '3'"),
        ("phases: []", "phases is '[]'"),
        ("phases: [{optm: {lr: 1}}]", "phase 1: unknown key 'optm'"),
        ("phases: [{keep: everything}]", "--keep everything"),
        ("phases: [{keep: weights, optim: {lr: -1}}]", "--lr (optim.lr)"),
    ],
)
def test_bad_phases(finetune: Finetune, tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "phases.yaml"
    config.write_text(text)
    with pytest.raises(UserError) as error:
        api.continue_run(str(finetune("parent").path), config=str(config), output_dir=str(tmp_path / "out"))
    assert told in str(error.value)
    assert not (tmp_path / "out").exists()


def test_phases_have_places_of_their_own(finetune: Finetune, tmp_path: Path) -> None:
    """A folder, a name and a file of weights that stand beside the list; a phase may say its own."""
    parent = finetune("parent")
    config = tmp_path / "phases.yaml"
    config.write_text(
        f"output: {{runs_dir: {tmp_path / 'runs'}, save_as: {tmp_path / 'best.pt'}}}\n"
        "experiment: {name: lmsa}\n"
        "train: {epochs: 1}\n"
        "phases:\n- {keep: weights}\n- {keep: weights, output: {name: last}}\n- {keep: weights}\n"
    )
    result = api.continue_run(str(parent.path), config=str(config))
    assert isinstance(result, PhasesResult)
    assert [Path(run.run).name for run in result.runs] == ["lmsa-phase1", "last", "lmsa-phase3"]
    assert (tmp_path / "best.pt").exists()
    logs = [(Path(run.run) / layout.LOG).read_text() for run in result.runs]
    assert ["best.pt" in text for text in logs] == [False, False, True]


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("{keep: weights, optim: {lr: -1}}", "phase 2 of CONFIG: --lr (optim.lr)"),
        ("{keep: moments}", "phase 2 of CONFIG: --keep moments"),
        ("{keep: optimizer, optim: {optimizer: sgd}}", "--keep optimizer keeps the state of adamw"),
        ("{keep: weights, model: timm:resnet10t}", "and phase 1 of CONFIG is a builtin:fashion_cnn"),
        ("{keep: all, train: {epochs: 1}}", "--epochs 1 are not more than the 1 of phase 1"),
        ("{keep: weights, model: {weights: none}}", "weights none beside the parent"),
        ("{keep: weights, output: {output_dir: OUT/phase1}}", "share a folder"),
    ],
)
def test_mistakes_of_a_later_phase_are_told_before_the_first_begins(
    finetune: Finetune, tmp_path: Path, second: str, told: str
) -> None:
    config, out = tmp_path / "phases.yaml", tmp_path / "out"
    config.write_text(
        f"output: {{output_dir: {out}}}\nphases:\n- {{keep: weights, train: {{epochs: 1}}}}\n"
        f"- {second.replace('OUT', str(out))}\n"
    )
    with pytest.raises(UserError) as error:
        api.continue_run(str(finetune("parent").path), config=str(config))
    assert told.replace("CONFIG", str(config)) in str(error.value) and not out.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PhasesResult]]:
    """Where the phases that nobody interrupted are, and what they came to: for both moments below."""
    return tmp_path_factory.mktemp("phases") / "whole", []


@pytest.mark.parametrize("moment", ["within", "between"])
def test_a_resume_goes_on_with_the_phases_that_are_left(
    finetune: Finetune,
    whole: tuple[Path, list[PhasesResult]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """Interrupted in the first phase, or killed before the second one began: it ends as if it had not been."""
    from warmstart.engine import loop

    parent = finetune("parent")
    config = tmp_path / "phases.yaml"
    config.write_text(
        "train: {epochs: 1}\nphases:\n"
        "- {keep: weights, optim: {lr: 1e-3}}\n- {keep: optimizer}\n- {keep: weights, optim: {lr: 1e-4}}\n"
    )
    given: dict[str, Any] = {"config": str(config), "dropout": 0.2}
    place, results = whole
    if not results:
        result = api.continue_run(str(parent.path), output_dir=str(place), **given)
        assert isinstance(result, PhasesResult)
        results.append(result)
    real = continuing.run_child

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    def one_child(child: Any, *rest: Any) -> Any:
        return real(child, *rest) if child.parent.run.path == parent.path else dies()

    with monkeypatch.context() as patch:
        patch.setattr(
            *((loop, "_validate", dies) if moment == "within" else (continuing, "run_child", one_child))
        )
        with pytest.raises(KeyboardInterrupt):
            api.continue_run(str(parent.path), output_dir=str(tmp_path / "cut"), **given)
    assert not (tmp_path / "cut" / "phase2").exists()
    resumed = api.resume(str(tmp_path / "cut" / "phase1"))
    assert isinstance(resumed, PhasesResult)
    assert [Path(run.run).name for run in resumed.runs] == ["phase1", "phase2", "phase3"]
    assert resumed.keeps == results[0].keeps == ["weights", "optimizer", "weights"]
    for one, other in zip(resumed.runs, results[0].runs, strict=True):
        assert equal(weights(Run(Path(one.run))), weights(Run(Path(other.run))))
    assert Run(tmp_path / "cut" / "phase3").config["model"]["dropout"] == 0.2
    with pytest.raises(UserError, match="nothing is left to resume"):
        api.resume(str(tmp_path / "cut" / "phase1"))


# ---- checkpoints of other programs


def foreign(parent: Run, path: Path, **changed: Any) -> Path:
    """A file as ce7454 writes it, with a real AdamW state by the numbers of the model's parameters."""
    from warmstart.models.builtin import fashion_cnn

    torch.manual_seed(1)
    model = fashion_cnn.FashionCNN(3)
    model.load_state_dict(weights(parent))
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    model(torch.randn(8, 1, 28, 28)).square().mean().backward()
    optimizer.step()
    schedule.step()
    content = {
        "epoch": 1,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "best_f_score": 0.25,
        "config": {
            "training": {"learning_rate": "8e-4", "epochs": 5, "use_amp": True},
            "model": {"dropout": 0.15},
        },
        "history": {},
    }
    torch.save({**content, **changed}, path)
    return path


@pytest.fixture
def inputs(small_settings: dict[str, Any]) -> dict[str, Any]:
    names = (
        "data",
        "model",
        "image_size",
        "batch_size",
        "train_ratio",
        "val_ratio",
        "workers",
        "device",
        "tensorboard",
    )
    return {name: small_settings[name] for name in names}


def test_a_foreign_checkpoint_with_its_moments_and_epoch(
    finetune: Finetune, go_on: Finetune, inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = foreign(finetune("parent"), tmp_path / "best_model.pth")
    child = go_on(file, keep="all", epochs=4, **inputs)
    assert child.resolved["pace"]["first_step"] == 6  # epoch 1 counted from 0: two are done
    optimizer = torch.load(file, weights_only=True)["optimizer_state_dict"]["state"]
    saved = state(child, 6)
    names = [
        name for name in torch.load(file, weights_only=True)["model_state_dict"] if "running" not in name
    ]
    names = [name for name in names if "num_batches" not in name]
    assert len(names) == len(optimizer) == 18
    for number, name in enumerate(names):
        assert torch.equal(saved[f"optimizer.exp_avg.{name}"], optimizer[number]["exp_avg"])
        assert torch.equal(saved[f"optimizer.exp_avg_sq.{name}"], optimizer[number]["exp_avg_sq"])
    log = (child.path / layout.LOG).read_text()
    assert "its epoch 1 is counted from 0: 2 epochs are done" in log
    assert "its best_f_score 0.250000 is no bar" in log
    assert "moments of 18 of 18 parameters, by their order" in log
    assert "rate at step 6: 0.000795 under the old schedule" in log
    assert child.config["model"]["dropout"] == 0.15 and child.config["optim"]["lr"] == 8e-4
    assert child.resolved["parent"]["bar"]["value"] == vals(child)[6]


def test_a_foreign_checkpoint_with_its_weights_alone(
    finetune: Finetune, go_on: Finetune, inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = foreign(finetune("parent"), tmp_path / "best_model.pth")
    before = file.read_bytes()
    child = go_on(file, keep="weights", epochs=1, **inputs)
    assert file.read_bytes() == before
    assert child.resolved["parent"] | {"bar": None} == {
        "run": str(file),
        "step": None,
        "lr": None,
        "keep": "weights",
        "bar": None,
    }
    assert not [name for name in state(child, 0) if name.startswith("optimizer.")]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"optimizer_state_dict": None}, "the file holds no optimizer state"),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]}},
            "its 2 groups of parameters do not tell which number is which parameter",
        ),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [{"params": [0, 1]}]}},
            "it numbers 2 parameters, and the file's weights have 18",
        ),
        (
            {"optimizer_state_dict": {"state": {}, "param_groups": [{"params": list(range(18))}]}},
            "it holds no step and exp_avg and exp_avg_sq of adamw",
        ),
    ],
)
def test_what_a_foreign_file_cannot_give_is_said(
    finetune: Finetune,
    go_on: Finetune,
    inputs: dict[str, Any],
    tmp_path: Path,
    changed: dict[str, Any],
    told: str,
) -> None:
    file = foreign(finetune("parent"), tmp_path / "best_model.pth", **changed)
    child = go_on(file, keep="optimizer", epochs=1, **inputs)
    assert kept(child)["optimizer state"] == "NOT kept" and told in (child.path / layout.LOG).read_text()


def test_a_foreign_file_without_an_epoch_cannot_go_on_counting(
    finetune: Finetune, go_on: Finetune, inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = foreign(finetune("parent"), tmp_path / "best_model.pth", epoch=None)
    with pytest.raises(UserError, match="does not say at which epoch it was saved"):
        go_on(file, keep="all", epochs=4, **inputs)


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {},
            "the parent has done 6 steps (2 epochs), and this run would end at step 6\nExpected: --epochs above 2",
        ),
        ({"epochs": 1}, "would end at step 3"),
        ({"epochs": 5, "max_steps": 4}, "--max-steps none or above 6"),
        ({"epochs": 3, "optimizer": "sgd"}, "--keep all keeps the state of adamw, and --optimizer is sgd"),
        ({"epochs": 3, "keep": "optimizer", "optimizer": "sgd"}, "--keep optimizer keeps the state of adamw"),
        ({"epochs": 3, "batch_size": 4}, "3 an epoch, and here an epoch has 6"),
        (
            {"epochs": 3, "model": "timm:resnet10t"},
            "is a builtin:fashion_cnn\nExpected: the parent's architecture",
        ),
        ({"epochs": 3, "weights": "none"}, "weights none beside the parent"),
        ({"epochs": 3, "keep": "moments"}, "--keep moments\nExpected: one of all, optimizer, weights"),
        ({"epochs": 3, "lr": -1}, "--lr (optim.lr)"),
        ({"epochs": 3, "dropuot": 0.1}, "unknown setting 'dropuot'"),
        ({"epochs": 3, "config": "absent.yaml"}, "cannot read the config absent.yaml"),
    ],
)
def test_refused(finetune: Finetune, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    parent = finetune("parent")
    before = tree(parent.path)
    with pytest.raises(UserError) as error:
        api.continue_run(str(parent.path), output_dir=str(tmp_path / "child"), **given)
    assert told in str(error.value)
    assert not (tmp_path / "child").exists() and tree(parent.path) == before


def test_a_runs_own_config_is_no_contradiction(finetune: Finetune, go_on: Finetune, tmp_path: Path) -> None:
    """Its places and the weights that it began with are its own; everything else is in force."""
    parent = finetune("parent", save_as=str(tmp_path / "best.pt"), dropout=0.1)
    own = str(parent.path / layout.CONFIG)
    child = go_on(parent, config=own, keep="weights", epochs=1)
    assert child.config["model"]["dropout"] == 0.1
    assert child.resolved["parent"]["step"] == parent.pointer(layout.BEST)
    grandchild = go_on(f"{parent.path}@6", "again", config=str(child.path / layout.CONFIG), keep="weights")
    assert grandchild.config["train"]["epochs"] == 1
    edited = tmp_path / "edited.yaml"
    edited.write_text(Path(own).read_text().replace(str(tmp_path / "best.pt"), "null"))
    with pytest.raises(UserError, match="weights none beside the parent"):
        go_on(parent, "edited", config=str(edited), keep="weights", epochs=1)


def test_other_classes_are_refused(finetune: Finetune, tmp_path: Path, overlapping: Path) -> None:
    parent = finetune("parent")
    shutil.copytree(overlapping, tmp_path / "data")
    (tmp_path / "data" / "cat").rename(tmp_path / "data" / "dog")
    for keep in ("all", "optimizer", "weights"):
        with pytest.raises(UserError) as error:
            api.continue_run(str(parent.path), keep=keep, epochs=3, data=str(tmp_path / "data"))
        assert "not here cat; new dog" in str(error.value) and "`warmstart finetune`" in str(error.value)


def test_other_images_keep_no_place_in_an_order(
    finetune: Finetune, go_on: Finetune, overlapping: Path, tmp_path: Path
) -> None:
    parent = finetune("parent")
    shutil.copytree(overlapping, tmp_path / "data")
    Image.new("L", (16, 16), 90).save(tmp_path / "data" / "ant" / "01.png")
    with pytest.raises(UserError, match="--keep all keeps the place in the order of the training images"):
        go_on(parent, "refused", epochs=3, data=str(tmp_path / "data"))
    child = go_on(parent, "child", keep="optimizer", epochs=1, data=str(tmp_path / "data"))
    assert child.resolved["parent"]["bar"]["origin"] == "measured on this run's val"


def test_a_parent_that_runs_is_refused_and_a_stale_one_is_not(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent")
    status = json.loads((parent.path / layout.STATUS).read_text())
    (parent.path / layout.STATUS).write_text(
        json.dumps(status | {"state": "running", "pid": 1, "born": None})
    )
    for keep in ("all", "weights"):
        with pytest.raises(UserError, match="is still running \\(process 1 on"):
            go_on(parent, keep=keep, epochs=3)
    (parent.path / layout.STATUS).write_text(
        json.dumps(status | {"state": "running", "pid": 2**22 - 7, "born": None})
    )
    assert go_on(parent, epochs=3).status["state"] == "finished"


def test_a_run_of_a_machine_that_is_gone_goes_on_as_its_message_says(
    finetune: Finetune, go_on: Finetune, tmp_path: Path
) -> None:
    """Nobody here knows whether a process elsewhere lives; the way out is told, and works."""
    parent = finetune("parent")
    status = json.loads((parent.path / layout.STATUS).read_text())
    elsewhere = {"state": "running", "host": "a-node-that-is-gone", "pid": 4, "born": None}
    (parent.path / layout.STATUS).write_text(json.dumps(status | elsewhere))
    (parent.checkpoint(6) / layout.MODEL).write_bytes(b"")  # as if it had ended before
    told = r"process 4 on a-node-that-is-gone\); it last wrote 0 minutes ago(.|\n)*remove (\S+status.json),"
    for start in (lambda: api.resume(str(parent.path)), lambda: go_on(parent, epochs=3)):
        with pytest.raises(UserError, match=told):
            start()
    (parent.path / layout.STATUS).unlink()
    assert isinstance(resumed := api.resume(str(parent.path)), FinetuneResult)
    assert Run(Path(resumed.run)).status["state"] == "finished"
    assert go_on(parent, epochs=3).status["state"] == "finished"


def test_counters_that_would_stop_at_once_are_refused(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", lr=1e-12, freeze_bn=True, epochs=9, patience=2)
    assert parent.status["stop_reason"] == "no new best in 2 validations"
    with pytest.raises(
        UserError, match="keeps the count of 2 validations without a new best, and --patience is 2"
    ):
        go_on(parent)
    child = go_on(parent, patience=3)
    assert child.status["step"] == parent.status["step"] + 3 and child.status["stop_reason"]


def test_a_damaged_last_checkpoint_falls_back(finetune: Finetune, go_on: Finetune) -> None:
    parent = finetune("parent", epochs=3)
    (parent.checkpoint(9) / layout.STATE).write_text("{")
    child = go_on(parent, epochs=4)
    assert child.resolved["parent"]["step"] == 6
    with pytest.raises(
        UserError, match=r"the checkpoint of step 9 .* cannot be read whole: state.json has 1 bytes"
    ):
        go_on(f"{parent.path}@9", "other", epochs=4)


def test_missing_parents(tmp_path: Path, finetune: Finetune) -> None:
    parent = finetune("parent")
    with pytest.raises(UserError, match=r"the parent: .*parnt does not exist\n.*\n?.*Did you mean 'parent'"):
        api.continue_run(str(tmp_path / "parnt"))
    with pytest.raises(UserError, match="has no checkpoint 77"):
        api.continue_run(f"{parent.path}@77")


def test_a_dry_run_writes_nothing(finetune: Finetune, tmp_path: Path) -> None:
    parent = finetune("parent")
    result = api.continue_run(str(parent.path), epochs=3, dry_run=True, output_dir=str(tmp_path / "child"))
    assert isinstance(result, DryRunResult) and result.record["resolved"]["parent"]["keep"] == "all"
    assert not (tmp_path / "child").exists()


# ---- a cadence


def test_validations_at_intervals_with_limits(finetune: Finetune) -> None:
    run = finetune("run", epochs=4, eval_every="1steps:2steps,2steps:2epochs,1epochs")
    assert sorted(vals(run)) == [0, 1, 2, 4, 6, 9, 12]
    assert run.config["train"]["eval_every"] == "1steps:2steps,2steps:2epochs,1epochs"
