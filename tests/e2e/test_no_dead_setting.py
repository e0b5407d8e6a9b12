"""No setting is ever dead: for every leaf of the schema, changing it changes something that can be observed.

Observed is what a tiny run leaves behind: plan, computed values, metric rows (without times), files,
the hash of the weights, or the error. The config itself and the record of origins do not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from warmstart.config.io import load
from warmstart.config.schema import leaves
from warmstart.engine.train import finetune
from warmstart.errors import UserError
from warmstart.inference.predictions import write_predictions
from warmstart.run import layout, reader
from warmstart.verbs.continuing import finish

BASE = {
    "model": "builtin:fashion_cnn",
    "weights": "none",
    "image_size": 16,
    "batch_size": 8,
    "epochs": 2,
    "tensorboard": False,
    "log_every": "1steps",
}
_NOISE = ("seconds", "images_per_s")

MASKED = {"data": "MASKED", "model": "builtin:microsegformer", "image_size": 32, "epochs": 1}
RETAINED = {"retain": "OTHER", "weights": "START"}
EPISODES = {
    "data": "CLASSES",
    "meta": "protonet",
    "meta.way": 2,
    "meta.query": 3,
    "meta.episodes": 4,
    "epochs": 1,
}
EPISODES |= {"meta.val_episodes": 4, "meta.test_episodes": 4}
TASKS = {"tasks": "more=OTHER"}
RGB = {"data": "COLOUR", "model": "timm:resnet10t", "image_size": 32}

# leaf -> (changed settings, settings that both sides have besides BASE)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "data.path": ({"data": "OTHER"}, {}),
    "data.download": ({"download": True}, {}),
    "data.label_columns": ({"label_columns": "a,b"}, {}),
    "data.group": ({"group": r"/([0-9]+)\."}, {}),
    "data.masks": ({"masks": "outlines"}, {}),  # these data have no masks: each is refused by its name
    "data.mask_classes": ({"mask_classes": "a,b"}, {}),
    "data.ignore": ({"ignore": 11}, {}),
    "data.mask_remap": ({"mask_remap": "255=1"}, {}),
    "data.mask_colours": ({"mask_colours": "0.0.0=1"}, {}),
    "data.flip_pairs": ({"flip_pairs": "a:b"}, {}),
    "data.mix": ({"mix": "OTHER=.5"}, {}),
    "data.mix_classes": ({"mix_classes": "a=b,b=a"}, {"mix": "OTHER=.5"}),
    "data.train_ratio": ({"train_ratio": 0.5}, {}),
    "data.val_ratio": ({"val_ratio": 0.2}, {}),
    "data.limit": ({"limit": 0.5}, {}),
    "data.image_size": ({"image_size": 24}, {}),
    "data.mean": ({"mean": "0.5"}, {"std": "0.3", "mean": "0.4"}),
    "data.std": ({"std": "0.5"}, {"std": "0.3", "mean": "0.4"}),
    "data.crop_pct": ({"crop_pct": 0.5}, {}),
    "data.sampler": ({"sampler": "balanced"}, {}),
    "data.mine": ({"mine": "absent"}, {}),  # with a run: test_heads.py
    "data.mine_weight": ({"mine_weight": 5}, {"mine": "PREDICTIONS"}),
    "data.mine_prob": ({"mine_prob": 0.99}, {"mine": "PREDICTIONS"}),
    "data.batch_size": ({"batch_size": 4}, {}),
    "data.eval_batch_size": ({"eval_batch_size": 3}, {}),
    "data.cache": ({"cache": "off"}, {}),
    "data.cache_dir": ({"cache_dir": "elsewhere"}, {}),
    "data.feature_cache": ({"feature_cache": "off"}, {"freeze": "conv*", "augment": "none"}),
    "data.views": ({"views": 1}, {"freeze": "conv*", "feature_cache": "on"}),
    "data.workers": ({"workers": 2}, {"workers": 0}),
    "data.max_corrupt": ({"max_corrupt": 0.5}, {"data": "CORRUPT"}),
    "data.augment": ({"augment": "none"}, {}),
    "data.rotation": ({"rotation": 90}, {}),
    "data.crop_pad": ({"crop_pad": 0.4}, {}),
    "data.zoom": ({"zoom": 0.4}, {}),
    "data.flip": ({"flip": 1.0}, {}),
    "data.crop_scale": ({"crop_scale": 0.3}, {}),
    "data.shear": ({"shear": 30}, {}),
    "data.brightness": ({"brightness": 0.8}, {}),
    "data.contrast": ({"contrast": 0.8}, {}),
    "data.saturation": ({"saturation": 0.8}, RGB),
    "data.hue": ({"hue": 0.4}, RGB),
    "data.blur": ({"blur": 1.0}, {"image_size": 64}),
    "data.erase": ({"erase": 1.0}, {}),
    "data.randaugment": ({"randaugment": 10}, {}),
    "data.mixup": ({"mixup": 1.0}, {}),
    "data.cutmix": ({"cutmix": 1.0}, {}),
    "model.name": ({"model": "timm:resnet10t"}, {"image_size": 32}),
    "model.weights": ({"weights": "absent.pt"}, {}),
    "model.dropout": ({"dropout": 0.9}, {}),
    "task.label_smoothing": ({"label_smoothing": 0.5}, {}),
    "task.class_weights": ({"class_weights": "a=5"}, {}),
    "task.margin_method": ({"margin_method": "cosface"}, {}),
    "task.margin": ({"margin": 0.5}, {"margin_method": "cosface"}),
    "task.margin_scale": ({"margin_scale": 30}, {"margin_method": "cosface"}),
    "task.margin_eval_scale": ({"margin_eval_scale": 2}, {"margin_method": "cosface"}),
    "task.margin_ramp": ({"margin_ramp": "2epochs"}, {"margin_method": "cosface"}),
    "task.positive": ({"positive": "a"}, {}),
    "task.threshold": ({"threshold": 0.3}, {}),
    "task.loss": ({"loss": "focal"}, MASKED),
    "task.focal_gamma": ({"focal_gamma": 0.5}, {**MASKED, "loss": "focal"}),
    "task.focal_alpha": ({"focal_alpha": 1.0}, {**MASKED, "loss": "focal", "optimizer": "sgd", "clip": None}),
    "task.ce_weight": ({"ce_weight": 0.5}, {**MASKED, "dice_weight": 1}),
    "task.dice_weight": ({"dice_weight": 1.5}, MASKED),
    "task.dice_classes": ({"dice_classes": "all"}, {**MASKED, "dice_weight": 1}),
    "task.lovasz_weight": ({"lovasz_weight": 1}, MASKED),
    "task.tversky_weight": ({"tversky_weight": 1}, MASKED),
    "task.tversky_alpha": ({"tversky_alpha": 0.5}, {**MASKED, "tversky_weight": 1}),
    "adapt.freeze": ({"freeze": "conv1"}, {}),
    "adapt.freeze_bn": ({"freeze_bn": True}, {}),
    "adapt.lrs": ({"lrs": "head=1e-5"}, {}),
    "adapt.unfreeze": ({"unfreeze": "0:head,1:all"}, {}),
    "adapt.layer_decay": ({"layer_decay": 0.5}, {}),
    "optim.optimizer": ({"optimizer": "sgd"}, {}),
    "optim.lr": ({"lr": 1e-2}, {}),
    "optim.min_lr": ({"min_lr": 9e-4}, {}),
    "optim.momentum": ({"momentum": 0.0}, {"optimizer": "sgd"}),
    "optim.weight_decay": ({"weight_decay": 0.5}, {}),
    "optim.scheduler": ({"scheduler": "linear"}, {}),
    "optim.scheduler_step": ({"scheduler_step": "1steps"}, {"scheduler": "step"}),
    "optim.scheduler_gamma": ({"scheduler_gamma": 0.1}, {"scheduler": "exponential"}),
    "optim.scheduler_patience": (
        {"scheduler_patience": 0},
        {
            "scheduler": "plateau",
            "optimizer": "sgd",
            "lr": 1.0,
            "eval_every": "1steps",
            "scheduler_gamma": 0.1,
        },
    ),
    "optim.warmup": ({"warmup": "2steps"}, {}),
    "optim.stage_warmup": ({"stage_warmup": "1epochs"}, {"unfreeze": "0:head,1:all"}),
    "optim.clip": ({"clip": 1e-3}, {"optimizer": "sgd"}),
    "optim.accumulate": ({"accumulate": 2}, {}),
    "train.epochs": ({"epochs": 3}, {}),
    "train.max_steps": ({"max_steps": 1}, {}),
    "train.time_budget": ({"time_budget": "10m"}, {}),
    "train.eval_every": ({"eval_every": "1steps"}, {}),
    "train.save_every": ({"save_every": "2steps"}, {"keep": None}),
    "train.keep_checkpoints": ({"keep_checkpoints": 1}, {"save_every": "1steps"}),
    "train.rescue": ({"rescue": 0}, {"optimizer": "sgd", "lr": 1e30, "clip": None}),
    "train.log_every": ({"log_every": "2steps"}, {}),
    "train.patience": ({"patience": 1}, {"min_delta": 5.0, "eval_every": "1steps", "select_by": "loss"}),
    "train.min_delta": ({"min_delta": 5.0}, {"eval_every": "1steps", "select_by": "loss"}),
    "train.select_by": ({"select_by": "loss"}, {}),
    "train.precision": ({"precision": "bf16"}, {}),
    # Refused by name, where compiling takes half a minute; what it does to a run: test_compiled.py.
    "train.compile": ({"compile": True}, {**MASKED, "freeze": "patch_embed*,block*", "feature_cache": "on"}),
    "train.gradient_checkpointing": ({"gradient_checkpointing": True}, RGB),
    "train.ema": ({"ema": 0.5}, {}),
    "train.seed": ({"seed": 1}, {}),
    "train.device": ({"device": "cuda:77"}, {}),
    "output.output_dir": ({"output_dir": "elsewhere"}, {}),
    "output.runs_dir": ({"runs_dir": "elsewhere"}, {"output_dir": None}),
    "output.name": ({"name": "called"}, {"output_dir": None}),
    "output.save_as": ({"save_as": "weights.pt"}, {}),
    "output.output_style": ({"output_style": "ocec"}, {}),
    "output.tensorboard": ({"tensorboard": True}, {}),
    "output.pictures": ({"pictures": False}, {}),
    "text.head": (
        {"text.head": "zero-shot"},
        {},
    ),  # this model has no texts: refused by name; see test_clip.py
    "text.prompts": ({"text.prompts": "a {}"}, {}),
    "text.tower": ({"text.tower": "frozen"}, {}),
    "text.captions": ({"text.captions": "caption"}, {}),
    "retain.path": ({"retain": "OTHER"}, {}),
    "retain.replay": ({"retain.replay": 0.25}, RETAINED),
    "retain.images": ({"retain.images": 4}, {**RETAINED, "retain.replay": 0.25}),
    "retain.l2sp": ({"retain.l2sp": 1.0}, RETAINED),
    "retain.ewc": ({"retain.ewc": 100.0}, RETAINED),
    "retain.ewc_images": ({"retain.ewc_images": 4}, {**RETAINED, "retain.ewc": 100.0}),
    "retain.lwf": ({"retain.lwf": 1.0}, RETAINED),
    "retain.temperature": ({"retain.temperature": 5.0}, {**RETAINED, "retain.lwf": 1.0}),
    "distill.teacher": ({"teacher": "START"}, {}),
    "distill.temperature": ({"distill.temperature": 1.0}, {"teacher": "START"}),
    "distill.alpha": ({"distill.alpha": 0.9}, {"teacher": "START"}),
    "distill.hints": ({"distill.hints": 1.0}, {"teacher": "START"}),
    "distill.classes": ({"distill.classes": "a=b,b=a"}, {"teacher": "START"}),
    "tasks.data": ({"tasks": "more=OTHER"}, {}),
    "tasks.first": ({"tasks.first": "shapes"}, TASKS),
    "tasks.weights": ({"tasks.weights": "more=5"}, TASKS),
    "tasks.sampling": ({"tasks.sampling": "equal"}, {**MASKED, "data": "DATA", "tasks": "more=MASKED"}),
    "tasks.select": ({"tasks.select": "more=1"}, TASKS),
    "lora.rank": ({"lora.rank": 2}, {}),
    "lora.alpha": ({"lora.alpha": 32}, {"lora.rank": 2}),
    "lora.dropout": ({"lora.dropout": 0.5}, {"lora.rank": 2}),
    "lora.targets": ({"lora.targets": "fc1"}, {"lora.rank": 2}),
    "lora.kind": ({"lora.kind": "dora"}, {"lora.rank": 2}),
    "lora.bits": ({"lora.bits": 4}, {"lora.rank": 4, "lora.targets": "fc1"}),
    "meta.method": ({"meta": "reptile"}, EPISODES),
    "meta.way": ({"meta.way": 3}, EPISODES),
    "meta.shot": ({"meta.shot": 2}, EPISODES),
    "meta.query": ({"meta.query": 4}, EPISODES),
    "meta.episodes": ({"meta.episodes": 5}, EPISODES),
    "meta.val_classes": ({"meta.val_classes": "c0,c8"}, EPISODES),
    "meta.test_classes": ({"meta.test_classes": "3"}, EPISODES),
    "meta.val_episodes": ({"meta.val_episodes": 5}, EPISODES),
    "meta.test_episodes": ({"meta.test_episodes": 5}, EPISODES),
    "meta.inner_steps": ({"meta.inner_steps": 1}, {**EPISODES, "meta": "anil"}),
    "meta.inner_lr": ({"meta.inner_lr": 0.5}, {**EPISODES, "meta": "anil"}),
    "meta.temperature": ({"meta.temperature": 50.0}, EPISODES),
    "meta.second_order": ({"meta.second_order": True}, {**EPISODES, "meta": "maml", "meta.inner_lr": 0.5}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small folders of two classes: plain, other images, with a broken file, in colour; of nine classes; of masks."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name in ("DATA", "OTHER", "CORRUPT"):
        for number, label in enumerate("ab"):
            (root / name / label).mkdir(parents=True)
            for index in range(20):
                pixels = generator.integers(0, 128, (20, 18), np.uint8) + 100 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / name / label / f"{index}.png")
    (root / "CORRUPT" / "a" / "0.png").write_bytes(b"not a picture")
    for number, label in enumerate("ab"):
        (root / "COLOUR" / label).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 128, (20, 18, 3), np.uint8) + 100 * number
            Image.fromarray(pixels.astype(np.uint8)).save(root / "COLOUR" / label / f"{index}.png")
    for index in range(20):
        (root / "MASKED" / "images").mkdir(parents=True, exist_ok=True)
        (root / "MASKED" / "masks").mkdir(exist_ok=True)
        mask = np.zeros((32, 32), np.uint8)
        top, left = generator.integers(0, 20, 2)
        mask[top : top + 10, left : left + 10] = 1
        mask[:2] = 255
        pixels = generator.integers(0, 128, (32, 32, 3), np.uint8) + 100 * (mask == 1)[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(root / "MASKED" / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "MASKED" / "masks" / f"{index}.png")
    for label in range(9):
        (root / "CLASSES" / f"c{label}").mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 60, (20, 18), np.uint8) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / "CLASSES" / f"c{label}" / f"{index}.png")
    (root / "MASKED" / "classes.txt").write_text("ground\nbox\nnobody\n")
    ids = [f"{label}/{index}.png" for label in "ab" for index in range(20)]
    scores = np.stack([generator.random(len(ids), np.float32)] * 2, axis=1)
    scores[:, 1] = 1 - scores[:, 0]
    content = write_predictions(ids, None, scores, ("a", "b"))
    (root / "PREDICTIONS").write_bytes(content)
    start = {**BASE, "data": str(root / "OTHER"), "epochs": 1, "output_dir": str(root / "START")}
    finetune(load(start))
    return {path.name: path for path in root.iterdir()}


def observe(settings: dict[str, Any], folders: dict[str, Path], to_the_end: bool = False) -> dict[str, Any]:
    """Everything that a run with these settings leaves behind, apart from the settings.

    `to_the_end`: with what is written after the training.
    """
    named = {"data": "DATA", "output_dir": "run", **BASE, **settings}
    for name, place in folders.items():
        if str(named.get("tasks")) == f"more={name}":
            named["tasks"] = f"more={place}"
        for setting in ("data", "mix", "retain", "weights", "mine", "teacher"):
            if str(named.get(setting)).partition("=")[0] == name:
                named[setting] = str(named[setting]).replace(name, str(place), 1)
    try:
        run = finetune(load({key: value for key, value in named.items() if value is not None}))
    except UserError as error:
        return {"error": str(error)}
    if to_the_end:
        finish(run, "cpu")
    found = reader.open_run(run)
    # Values that merely repeat a setting are no sign of life.
    silent = ("origins", "created", "seed", "lr", "probe", "augment")
    resolved = {key: value for key, value in found.resolved.items() if key not in silent}
    if resolved["workers"]["origin"] == "measured":  # which number is fastest is a matter of the moment
        resolved["workers"] = "measured"
    rows = [
        {k: v for k, v in row.items() if k not in _NOISE} for row in found.metrics.rows + found.evals.rows
    ]
    step = found.pointer(layout.LAST)
    assert step is not None
    manifest = json.loads((found.checkpoint(step) / layout.MANIFEST).read_text())
    return {
        "run": run.as_posix() if run.name in ("run", "elsewhere", "called") else run.parent.as_posix(),
        "files": sorted(path.relative_to(run).as_posix().split(".out")[0] for path in run.rglob("*")),
        "beside": sorted(path.name for path in Path.cwd().iterdir() if path.is_file()),
        "resolved": resolved,
        "plan": found.plan,
        "rows": rows,
        "weights": manifest["files"][layout.MODEL]["sha256"],
        "status": {key: found.status.get(key) for key in ("best_step", "stop_reason")},
    }


def test_the_table_names_every_setting() -> None:
    assert set(CASES) == {leaf.path for leaf in leaves()}


@pytest.fixture(scope="module")
def seen_before() -> dict[str, dict[str, Any]]:
    """What the unchanged sides left behind: most settings share one."""
    return {}


@pytest.mark.parametrize("path", CASES)
def test_changing_the_setting_changes_something(
    path: str,
    folders: dict[str, Path],
    seen_before: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed, common = CASES[path]
    to_the_end = path in ("output.output_style", "output.pictures")
    key = json.dumps([common, to_the_end])
    if key not in seen_before:
        (tmp_path / "base").mkdir()
        monkeypatch.chdir(tmp_path / "base")
        seen_before[key] = observe(common, folders, to_the_end)
    (tmp_path / "changed").mkdir()
    monkeypatch.chdir(tmp_path / "changed")
    assert observe({**common, **changed}, folders, to_the_end) != seen_before[key]


def test_the_same_settings_leave_the_same_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above would prove nothing if two equal runs differed."""
    seen = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        seen.append(observe({}, folders))
    assert seen[0] == seen[1]
