"""Contradictions are refused, settings without effect are named, paths are checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from warmstart.config import io
from warmstart.errors import UserError


def load(base: dict[str, Any], **flags: Any) -> io.Loaded:
    return io.load(base | flags)


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "data").mkdir()
    return {"data": str(tmp_path / "data"), "model": "builtin:fashion_cnn", "weights": "none"}


def test_settings_of_adapters_without_a_rank(base: dict[str, Any]) -> None:
    """Refused where nothing spoke of a rank; told where it was taken away from a preset that holds the others."""
    with pytest.raises(UserError, match=r"(?s)--lora\.alpha without --lora\.rank.*--lora\.bits without"):
        load(base, **{"lora.alpha": 4, "lora.bits": 4})
    loaded = io.load(base | {"lora.rank": "none"}, preset="clip-lora")
    told = [text for text in loaded.warnings if text.endswith("has no effect without --lora.rank")]
    assert [text.split()[0] for text in told] == ["--lora.alpha", "--lora.dropout", "--lora.targets"]
    with pytest.raises(UserError, match=r"--lora\.alpha without"):
        io.load(base | {"lora.rank": "none", "lora.alpha": 4}, preset="clip-lora")
    assert load(base, **{"lora.kind": "lora"}).warnings == ("--lora.kind has no effect without --lora.rank",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"train_ratio": 0.8, "val_ratio": 0.3},
            r"--train-ratio 0\.8 and --val-ratio 0\.3 add up to more than 1",
        ),
        ({"mean": ".5"}, "only one of --mean and --std is given"),
        ({"std": ".5"}, "only one of --mean and --std is given"),
        ({"mean": ".5", "std": ".5,.5,.5"}, "--mean has 1 values and --std 3\nExpected: as many, one per"),
        ({"mean": ".5", "std": "0"}, "--std holds 0\nExpected: deviations above 0"),
        ({"lr": 1e-3, "min_lr": 1e-2}, r"--min-lr 0\.01 is above --lr 0\.001"),
        ({"freeze": "conv*", "unfreeze": "0:head"}, "--freeze and --unfreeze both say what is frozen"),
        ({"lrs": "head=0"}, "--lrs: the rate of 'head' is 0\nExpected: above 0"),
        ({"lrs": "head=-1"}, "--lrs: the rate of 'head' is -1"),
        ({"epochs": 3, "unfreeze": "0:head,3:all"}, "--unfreeze 3:all: the run has only 3 epochs"),
        (
            {"max_steps": 9, "unfreeze": "0:head,9steps:all"},
            "--unfreeze 9steps:all: the run has only 9 steps",
        ),
        (
            {"unfreeze": "0:head,f2>=.8:all"},
            "--unfreeze f2>=0.8: no metric is called 'f2'\nExpected: accuracy, loss",
        ),
        (
            {"unfreeze": "0:head,f1<=.8:all"},
            r"--unfreeze f1<=0\.8 would begin where f1 is bad: more of it is better\nExpected: f1>=0\.8",
        ),
        ({"unfreeze": "0:head,loss>=.8:all"}, "where loss is bad: less of it is better"),
        ({"unfreeze": "0:head,f1>=80:all"}, r"f1>=80\.0: f1 is never there\nExpected: a share such as \.80"),
        (
            {"unfreeze": "0:head,8:b,plateau:c,5:d"},
            "--unfreeze: the stages at 0, 8, 5 epochs stand out of order",
        ),
        ({"stage_warmup": ".1"}, r"--stage-warmup 0\.1 is in share\nExpected: 500steps or 2epochs"),
        ({"layer_decay": 0}, "layer-decay"),
        ({"eval_every": "none"}, "--eval-every is none\nExpected: an interval such as"),
        ({"save_every": 0}, "--save-every is none"),
        ({"log_every": "0steps"}, "--log-every is none"),
        ({"scheduler": "step", "scheduler_step": "none"}, "--scheduler-step is none"),
        ({"eval_every": "10m"}, "--eval-every 600s is in seconds\nExpected: 500steps or 2epochs"),
        ({"save_every": ".5"}, r"--save-every 0\.5 is in share"),
        ({"log_every": "1h"}, "--log-every 3600s is in seconds"),
        ({"scheduler": "step", "scheduler_step": ".5"}, r"--scheduler-step 0\.5 is in share"),
        (
            {"warmup": "1m"},
            r"--warmup 60s is in seconds\nExpected: 500steps or 2epochs or a share such as \.1",
        ),
        ({"time_budget": "5epochs"}, "--time-budget 5epochs is in epochs\nExpected: 10m"),
        ({"time_budget": "5"}, "--time-budget 5epochs is in epochs"),
        ({"data": None}, "--data is missing\nExpected: class folders, IDX files, or a CSV or parquet file"),
        ({"model": None, "weights": None}, "neither --model nor --weights is given"),
        ({"model": None}, "--weights none says nothing about the model"),
        ({"name": "a/b"}, "--name a/b is a path\nExpected: a name; .* --runs-dir"),
        ({"name": ".."}, r"--name \.\. is a path"),
        (
            {"save_as": "x.onnx"},
            r"--save-as x\.onnx has the suffix '\.onnx'\nExpected: NAME\.pt or .*, NAME\.safetensors for",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_contradictions(base, flags, message):
    load(base)  # nothing is wrong without them
    with pytest.raises(UserError, match=message):
        load(base, **flags)


def test_settings_of_stages_without_effect_are_named(base):
    assert load(base, stage_warmup="2epochs").warnings == (
        "--stage-warmup has no effect without a later stage of --unfreeze",
    )
    assert load(base, layer_decay=1).warnings == ("--layer-decay has no effect at 1",)
    stages = {"unfreeze": "0:head,plateau:all", "stage_warmup": "2epochs", "layer_decay": 0.9}
    assert load(base, **stages, scheduler_patience=2).warnings == ()
    (warning,) = load(base, **stages, patience=4).warnings
    assert warning.startswith("--patience 4 may end the run before --unfreeze plateau begins a stage")


def test_ratios_that_add_up_to_one_are_fine(base):
    assert load(base, train_ratio=0.7, val_ratio=0.3).warnings == ()


def test_a_missing_path_names_its_sibling(base, tmp_path):
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=r"--data: .*/dat does not exist\n.*\nFix: Did you mean 'data'\?"):
        load(base, data=str(tmp_path / "dat"))
    with pytest.raises(
        UserError, match=r"--weights: .*/modle.pt does not exist\n.*\nFix: Did you mean 'model.pt'"
    ):
        load(base, weights=str(tmp_path / "modle.pt"))
    with pytest.raises(UserError, match=r"Fix: its folder .*/nowhere does not exist either"):
        load(base, data=str(tmp_path / "nowhere" / "data"))
    with pytest.raises(UserError, match="does not exist"):
        load(base, data="x" * 5000)  # no file system takes this name


def test_a_run_and_its_step_are_weights(base, tmp_path):
    run = tmp_path / "me@home" / "run"
    run.mkdir(parents=True)
    for weights in (run, f"{run}@12", f"{run}@best"):
        assert load(base, weights=str(weights)).config.model.weights == str(weights)
    with pytest.raises(UserError, match=r"--weights: .*@12 does not exist"):
        load(base, weights=f"{run}x@12")


def test_a_directory_that_holds_something_is_refused(base, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    assert load(base, output_dir=str(used)).config.output.output_dir == str(used)
    (used / "precious.txt").touch()
    with pytest.raises(UserError, match="is not empty") as caught:
        load(base, output_dir=str(used))
    assert f"choose another --output-dir, or, if it is an interrupted run, `warmstart resume {used}`" in str(
        caught.value
    )
    with pytest.raises(UserError, match=r"the output directory .*/precious.txt is a file"):
        load(base, output_dir=str(used / "precious.txt"))


def test_nothing_is_overwritten_by_save_as(base, tmp_path):
    target = tmp_path / "best.pt"
    assert load(base, save_as=str(tmp_path / "new" / "folder" / "best.pt"))
    target.touch()
    with pytest.raises(UserError, match=r"--save-as .*/best\.pt exists already\n.*never overwrites"):
        load(base, save_as=str(target))
    with pytest.raises(
        UserError, match=r"--save-as .*: .*/best\.pt is a file\nExpected: a folder to write to"
    ):
        load(base, save_as=str(target / "best.pt"))


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ({"scheduler_step": 3}, "--scheduler-step has no effect with --scheduler cosine (read by step)"),
        (
            {"scheduler_gamma": 0.5, "scheduler": "linear"},
            "--scheduler-gamma has no effect with --scheduler linear (read by step or exponential or plateau)",
        ),
        (
            {"scheduler_patience": 2},
            "--scheduler-patience has no effect with --scheduler cosine (read by plateau)",
        ),
        (
            {"min_lr": 1e-5, "scheduler": "none"},
            "--min-lr has no effect with --scheduler none "
            "(read by cosine or linear or step or exponential or plateau)",
        ),
        (
            {"momentum": 0.8},
            "--momentum has no effect with --optimizer adamw (read by sgd and its relatives)",
        ),
        ({"views": 2, "feature_cache": "off"}, "--views has no effect with --feature-cache off"),
        (
            {"cache_dir": "x", "cache": "off", "feature_cache": "off"},
            "--cache-dir has no effect with --cache off and --feature-cache off",
        ),
        ({"runs_dir": "x", "output_dir": "y"}, "--runs-dir has no effect beside --output-dir"),
        ({"name": "x", "output_dir": "y"}, "--name has no effect beside --output-dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_without_effect_are_named(base, flags, warning):
    assert load(base, **flags).warnings == (warning,)


def test_settings_with_effect_are_not(base):
    for flags in (
        {"scheduler": "step", "scheduler_step": 3, "scheduler_gamma": 0.1, "min_lr": 1e-5},
        {"scheduler": "plateau", "scheduler_patience": 2, "scheduler_gamma": 0.1},
        {"optimizer": "sgd", "momentum": 0.8},
        {"name": "x", "runs_dir": "y"},
    ):
        assert load(base, **flags).warnings == ()


def test_views_are_not_kept_of_mixed_images(base, tmp_path):
    (tmp_path / "teacher.pth").touch()
    taught = {"teacher": str(tmp_path / "teacher.pth"), "views": 2}
    assert load(base, **taught).warnings == ()
    (told,) = load(base, **taught, cutmix=0.5).warnings
    assert told.startswith("--views has no effect with --mixup or --cutmix")


def test_a_default_asked_for_by_name_is_warned_about(base):
    """Whoever writes `--momentum 0.9` expects it to count."""
    assert len(load(base, momentum=0.9).warnings) == 1


def test_a_tilde_is_the_home_folder(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(base, data="~/data").config.data.path == "~/data"
    with pytest.raises(UserError, match=r"--data: ~/dat does not exist(.|\n)*Did you mean 'data'"):
        load(base, data="~/dat")
    with pytest.raises(UserError, match="--data: ~nobody-at-all/x does not exist"):
        load(base, data="~nobody-at-all/x")
