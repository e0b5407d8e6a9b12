"""Document 001's commands and files on small real data: its full command, its checkpoints, its file habits."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fresh
import warmstart as ws
from published_ocec import COUNTS, Published, checkpoint, lively
from warmstart.analysis.predict import PredictionResult
from warmstart.cli import main
from warmstart.config.aliases import translate
from warmstart.config.ocec import shape_of
from warmstart.config.schema import ModelConfig
from warmstart.engine.continuing.foreign_ocec import ocec_settings
from warmstart.errors import UserError
from warmstart.models.build import build
from warmstart.models.builtin.ocec import Ocec
from warmstart.models.pickled import first_epoch
from warmstart.records import Margin
from warmstart.results import FinetuneResult
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.tasks.metrics import per_class

pytestmark = pytest.mark.usefixtures("one_thread")

# Row 1.03, as the document has it but for its own folders.
FULL = """
    --data_root {data} --output_dir {out} --pretrain {model} --epochs 200 --batch_size 1024 --num_workers 16
    --train_ratio 0.8 --val_ratio 0.2 --image_size 32x64 --base_channels 32 --num_blocks 4 --arch_variant baseline
    --margin_method cosface --lr 5e-5 --weight_decay 1e-4 --seed 42 --device auto --warmup_epochs 10 --use_amp
"""


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of many sizes, open ones with a bright middle, in a parquet file with its own splits."""
    root = tmp_path_factory.mktemp("eyes")
    generator = np.random.default_rng(0)
    for label in ("closed", "open"):
        (root / label).mkdir()
        for number in range(24):
            height, width = generator.integers(20, 60, 2)
            pixels = generator.normal(100, 30, (height, width, 3))
            if label == "open":
                pixels[height // 4 : -height // 4, width // 4 : -width // 4] += 60
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / label / f"{number:02}.png")
    ws.prepare(
        "parquet", str(root), str(root / "dataset.parquet"), embed=True, train_ratio=0.5, val_ratio=0.25
    )
    return root / "dataset.parquet"


@pytest.fixture
def settings(eyes: Path, tmp_path: Path) -> dict[str, Any]:
    own = {
        "epochs": 2,
        "batch_size": 8,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
        "log_every": "1steps",
    }
    return {"data": str(eyes), "output_dir": str(tmp_path / "run"), **own}


def finetuned(**given: Any) -> Run:
    result = ws.finetune(**given)
    assert isinstance(result, FinetuneResult)
    return Run(Path(result.run))


def test_the_full_command_runs_as_it_stands(
    eyes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epoch, f1 in ((3, 0.9012), (126, 0.9845), (208, 0.9701)):
        checkpoint(tmp_path, "ocec", file=f"ocec_best_epoch{epoch:04}_f1_{f1}.pt")
    os.utime(tmp_path / "ocec_best_epoch0126_f1_0.9845.pt", (1, 1))  # the best is not the newest (1.28)
    places = {"data": eyes, "out": tmp_path / "out", "model": f"{tmp_path}/ocec_best_epoch*.pt"}
    command = FULL.format(**places).split()
    assert main(["finetune", *command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(["finetune", *command, "--max-steps", "2"]) == 0
    told = capsys.readouterr().err
    assert "ocec_best_epoch0126_f1_0.9845.pt, the best of 3" in told and "f1 0.9845 in its name" in told
    assert "--arch_variant baseline is --model builtin:ocec-baseline (a part of the model's name)" in told
    run = Run(tmp_path / "out")
    assert run.resolved["model"]["name"] == "builtin:ocec"
    assert run.config["model"]["weights"].endswith("ocec_best_epoch*.pt")
    assert run.config["data"]["image_size"] == "32x64" and run.config["optim"]["lr"] == 5e-5
    plan = {row["name"]: row for row in run.plan["rows"]}
    assert list(plan) == ["stem", *(f"features.{i}" for i in range(4)), "head"]


def test_a_glob_that_the_shell_expanded(tmp_path: Path) -> None:
    files = [tmp_path / f"ocec_best_epoch{n:04}_f1_0.{n}.pt" for n in (70, 81, 90)]
    for file in files:
        file.touch()
    tokens, _ = translate("finetune", ["--pretrain", *map(str, files), "--epochs", "3"])
    assert tokens == ["--weights", f"{tmp_path}/ocec_best_epoch00*.pt", "--epochs", "3"]
    (tmp_path / "ocec_best_epoch0055.pt").touch()
    with pytest.raises(UserError, match=r"--pretrain has 3 values[\s\S]*in quotes"):
        translate("finetune", ["--pretrain", *map(str, files)])


def test_parts_of_a_name_are_put_together() -> None:
    given = "--arch_variant convnext --head_variant auto --token_mixer_grid 3x2 --num_blocks=6 --lr 1"
    assert translate("finetune", given.split())[0] == [
        "--lr",
        "1",
        "--model",
        "builtin:ocec-convnext-g3x2-b6",
    ]


def test_what_the_checkpoint_contradicts_is_said(settings: dict[str, Any], tmp_path: Path) -> None:
    file = str(checkpoint(tmp_path, "ocec-inverted_se-c16"))
    with pytest.raises(UserError, match="arch_variant is baseline by --model and inverted_se in the file"):
        ws.finetune(**settings, weights=file, model="builtin:ocec-baseline-c16")
    assert not (tmp_path / "run" / layout.CHECKPOINTS).exists()


def test_a_grid_that_does_not_fit_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()  # no data set at all: what is wrong with it would be told later
    with pytest.raises(UserError, match=r"feature map of 3x5[\s\S]*--image-size 24x48 or 24x32"):
        ws.finetune(
            data=str(tmp_path / "data"), model="ocec-convnext-g3x2", weights="none", image_size="24x40"
        )
    with pytest.raises(UserError, match="'gx' means nothing"):
        ws.finetune(data=str(tmp_path / "data"), model="builtin:ocec-gx", weights="none")


def published_scores(file: Path, images: list[Path]) -> np.ndarray:
    """What the document's program says: both sides resized by Pillow, sigmoid of its one logit."""
    content = torch.load(file)
    height, width = content["normalization"]["image_size"]
    pixels = [
        Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BILINEAR) for path in images
    ]
    batch = torch.from_numpy(np.stack([np.asarray(image) for image in pixels])).permute(0, 3, 1, 2) / 255
    shape = shape_of("ocec-inverted_se")
    return torch.sigmoid(Published(content["model_state"], shape).logits(batch)).numpy()


def test_predict_evaluate_and_check_say_what_the_program_says(
    eyes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint(tmp_path, "ocec-inverted_se", prefix="module.")
    state = torch.load(file)
    state["model_state"] = {key.removeprefix("module."): t for key, t in state["model_state"].items()}
    torch.save(state, tmp_path / "plain.pt")
    images = sorted(eyes.parent.glob("*/0?.png"))
    wanted = published_scores(tmp_path / "plain.pt", images)
    predicted = ws.predict(str(file), [str(path) for path in images], device="cpu")
    assert isinstance(predicted, PredictionResult)
    found = [dict(zip(p.classes, p.scores, strict=True))["open"] for p in predicted.predictions]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    measured = ws.evaluate(str(file), str(eyes), split="all", device="cpu")
    everything = [eyes.parent / name for name in measured.ids]
    scores = published_scores(tmp_path / "plain.pt", everything)
    right = (scores >= 0.5) == np.array([path.parent.name == "open" for path in everything])
    assert measured.metrics["accuracy"] == pytest.approx(right.mean()) and measured.num_samples == 48
    assert main(["check", str(file), "--data", str(eyes), "--device", "cpu"]) == 0
    assert "builtin:ocec-inverted_se" in capsys.readouterr().out


def test_continue_keeps_optimizer_and_schedule(settings: dict[str, Any], tmp_path: Path) -> None:
    """From the file after the program's first epoch: its epochs are counted from 1."""
    scheduler = torch.load(checkpoint(tmp_path))["scheduler_state"]
    file = checkpoint(tmp_path, scheduler_state=scheduler | {"_last_lr": [5e-5]})  # halved once
    content = torch.load(file)
    child = ws.continue_run(str(file), **settings | {"epochs": 3})
    assert isinstance(child, FinetuneResult)
    run = Run(Path(child.run))
    assert run.resolved["pace"]["first_step"] == 3  # 24 images in steps of 8: one epoch is done
    kept = {what: how for what, how, _ in run.resolved["continued"]["kept"]}
    assert kept["optimizer state"] == kept["step and epoch"] == "kept"
    log = (run.path / layout.LOG).read_text()
    assert "its epoch 1 is counted from 1: 1 epochs are done" in log
    assert "has made 0.5 of the rate; patience counts anew" in log
    names = list(lively().state_dict())
    parameters = [name for name in names if "running" not in name and "num_batches" not in name]
    saved = load_file(run.checkpoint(3) / layout.STATE_TENSORS)
    for number, name in enumerate(parameters):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(
                saved[f"optimizer.{key}.{name}"], content["optimizer_state"]["state"][number][key]
            )
    config = run.config
    assert (config["optim"]["scheduler"], config["optim"]["scheduler_gamma"]) == ("plateau", 0.5)
    assert (config["optim"]["scheduler_patience"], config["optim"]["clip"]) == (2, None)
    assert (config["task"]["class_weights"], config["train"]["select_by"]) == ("balanced", "f1_positive")
    rates = [row["lr"] for row in run.metrics.rows if row.get("lr")]
    assert rates[0] == pytest.approx(5e-5) and "climbs back" not in log
    assert config["train"]["seed"] == 42 and config["model"]["dropout"] == 0.3


def test_continue_of_a_margin_file_knows_which_number_is_which(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    rows = torch.nn.Parameter(torch.randn(2, 64))
    module = lively()
    optimizer = torch.optim.AdamW([*module.parameters(), rows], 1e-4)
    for number, parameter in enumerate([*module.parameters(), rows]):  # its head gets no gradient
        if number < len(list(module.parameters())) - 4 or parameter is rows:
            parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    state = module.state_dict() | {"margin_head.weight": rows.detach()}
    train = {"margin_method": "cosface", "lr": 1e-4, "epochs": 30}
    file = checkpoint(tmp_path, model_state=state, optimizer_state=optimizer.state_dict(), train_config=train)
    child = ws.continue_run(str(file), **settings | {"epochs": 2})
    run = Run(Path(child.run))  # type: ignore[union-attr]
    saved = load_file(run.checkpoint(3) / layout.STATE_TENSORS)
    assert run.resolved["model"]["name"] == "builtin:ocec-cosface"
    number = len(list(module.parameters()))
    torch.testing.assert_close(
        saved["optimizer.exp_avg.margin_head.weight"], torch.full((2, 64), 0.1 * (number + 1))
    )
    assert "moments of 28 of 28 parameters" in (run.path / layout.LOG).read_text()


LOADED = """
import sys, torch
from warmstart.models.builtin.ocec import Ocec
from warmstart.results import FinetuneResult
from warmstart.config.ocec import OcecShape
content = torch.load(sys.argv[1], weights_only=True)
config = content["model_config"]
shape = OcecShape(config["arch_variant"], config["head_variant"], config["base_channels"], config["num_blocks"])
Ocec(shape).load_state_dict(content["model_state"], strict=True)
"""


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_files_of_the_document_hold_what_was_measured(
    settings: dict[str, Any], tmp_path: Path, ema: float | None
) -> None:
    """Reference 3D: its fork measures averaged weights and saves the others."""
    given = {
        "weights": "none",
        "model": "ocec",
        "lr": 0.01,
        "output_style": "ocec",
        "ema": ema,
        "image_size": "32x64",
    }
    run = finetuned(**settings, **given)
    folder = run.path / "ocec"
    [best_file] = folder.glob("ocec_best_epoch*.pt")
    match = re.fullmatch(r"ocec_best_epoch(\d{4})_f1_(\d\.\d{4})\.pt", best_file.name)
    assert match is not None
    content = torch.load(best_file)
    best = run.pointer(layout.BEST)
    assert best is not None and int(match[1]) == content["epoch"] == best // 3
    recorded = next(row for row in run.evals.rows if row["split"] == "val" and row["step"] == best)
    again = ws.evaluate(str(best_file), settings["data"], split="val", device="cpu")
    assert again.metrics["loss"] == pytest.approx(recorded["loss"], abs=1e-6)
    assert content["val_metrics"]["loss"] == pytest.approx(recorded["loss"], abs=1e-6)
    assert content["best_f1"] == content["val_metrics"]["f1"] == pytest.approx(float(match[2]), abs=5e-5)
    rows = per_class(np.array(_confusion(again.outputs, again.targets)), ("closed", "open"))
    assert content["val_metrics"]["f1"] == pytest.approx(rows[1]["f1"])
    assert list(content["model_state"]) == list(lively().state_dict())
    assert sum(p.numel() for p in Ocec(shape_of("ocec")).parameters()) == COUNTS["ocec"]
    done = fresh.run(best_file, code=LOADED)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.glob("ocec_epoch_*.pt")} >= {"ocec_epoch_0002.pt"}
    history = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in history] == [0, 1, 2] and history[-1]["lr"] is not None
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["checkpoint"] == str(best_file) and summary["best_f1"] == content["best_f1"]
    with (folder / "test_predictions.csv").open() as stream:
        predictions = list(csv.DictReader(stream))
    assert len(predictions) == run.resolved["data"]["sizes"]["test"]
    assert list(predictions[0]) == ["path", "label", "logit", "prob_open"]
    for row in predictions:
        assert float(row["prob_open"]) == pytest.approx(1 / (1 + np.exp(-float(row["logit"]))))
    for split in ("val", "test"):
        assert (folder / f"diagnostics/{split}/roc_{split}_epoch{content['epoch']:04}.png").is_file()
        assert (folder / f"diagnostics/{split}/confusion_{split}_epoch{content['epoch']:04}.png").is_file()


def test_its_files_keep_margin_head_and_class_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    given = {"margin": 0.3, "margin_scale": 9.0, "margin_eval_scale": 5.0, "class_weights": "open=3,closed=1"}
    schedule = {"optimizer": "sgd", "scheduler": "step", "scheduler_step": "1epochs", "clip": 0.5}
    run = finetuned(
        **settings | {"epochs": 1} | schedule,
        **given,
        weights="none",
        model="ocec-c8-b2-arcface",
        output_style="ocec",
    )
    [file] = (run.path / "ocec").glob("ocec_best_epoch*.pt")
    built = build(ModelConfig(weights=str(file)), {}, None, 0)
    assert (built.name, built.margin) == ("builtin:ocec-c8-b2-arcface", Margin("arcface", 0.3, 9.0, 5.0))
    content = torch.load(file)
    recorded = content["val_metrics"]["loss"]
    again = ws.evaluate(str(file), settings["data"], split="val", device="cpu")
    logits = torch.from_numpy(again.outputs)
    of_run = ws.evaluate(str(run.path), settings["data"], split="val", device="cpu")
    assert of_run.metrics["loss"] == pytest.approx(recorded, abs=1e-6)
    torch.testing.assert_close(logits, torch.from_numpy(of_run.outputs))
    assert ocec_settings(content)["task.class_weights"] == "open=3,closed=1"
    child = ws.continue_run(str(file), data=settings["data"], keep="weights", output_dir=str(tmp_path / "on"))
    optim = Run(Path(child.run)).config["optim"]
    assert {name: optim[name] for name in schedule} == schedule
    assert ocec_settings(torch.load(checkpoint(tmp_path)))["task.class_weights"] == "balanced"


@pytest.mark.parametrize(
    ("model", "method", "fix"),
    [
        ("ocec-c8-b2", "arcface", "--model builtin:ocec-c8-b2-arcface"),
        ("ocec-c8-b2-arcface", "none", "--model builtin:ocec-c8-b2, "),
        ("timm:resnet10t", "cosface", "leave --output-style out"),
    ],
)
def test_the_output_style_needs_the_head_of_the_models_name(
    settings: dict[str, Any], model: str, method: str, fix: str
) -> None:
    with pytest.raises(UserError) as caught:
        ws.finetune(**settings, weights="none", model=model, margin_method=method, output_style="ocec")
    assert "is no model of document 001" in str(caught.value) and fix in str(caught.value)


def test_files_of_one_epoch_do_not_overwrite_each_other(settings: dict[str, Any]) -> None:
    given = {"eval_every": "1steps", "save_every": "1steps", "keep_checkpoints": 9, "output_style": "ocec"}
    run = finetuned(**settings | {"epochs": 1}, **given, weights="none", model="ocec-c8-b2")
    files = {path.name for path in (run.path / "ocec").glob("ocec_epoch_*.pt")}
    assert {f"ocec_epoch_0001{end}.pt" for end in ("_step1", "_step2", "")} <= files
    assert len(files) == len(run.checkpoint_steps())


def test_other_programs_with_a_model_config_are_not_taken_for_it(tmp_path: Path) -> None:
    content = torch.load(checkpoint(tmp_path))
    other = content | {"model_config": {"hidden": 8, "name": "net"}}
    assert ocec_settings(other) == {} and first_epoch(other) == 0
    assert ocec_settings(content)["train.select_by"] == "f1_positive" and first_epoch(content) == 1
    ours = other | {"train_config": {"program": "warmstart", "class_weights": None}}
    assert ocec_settings(ours)["task.class_weights"] is None and first_epoch(ours) == 1


def _confusion(outputs: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    predicted = outputs.argmax(axis=1)
    return [[int(((targets == t) & (predicted == p)).sum()) for p in (0, 1)] for t in (0, 1)]


def test_the_output_style_needs_a_yes_or_no(small_settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classification with 3 classes"):
        ws.finetune(**small_settings, output_dir=str(tmp_path / "run"), output_style="ocec")


def test_a_run_may_be_named_by_a_part_of_its_model(settings: dict[str, Any], tmp_path: Path) -> None:
    run = finetuned(**settings, weights="none", model="ocec-inverted_se-c8-b2")
    again = {"output_dir": str(tmp_path / "child"), "epochs": 3}
    child = ws.continue_run(str(run.path), **again, model="ocec-c8-avgmax_mlp")
    assert Run(Path(child.run)).resolved["model"]["name"] == "builtin:ocec-inverted_se-c8-b2"  # type: ignore[union-attr]
    with pytest.raises(UserError, match="is a builtin:ocec-inverted_se-c8-b2"):
        ws.continue_run(str(run.path), output_dir=str(tmp_path / "other"), model="ocec-c32")


def test_two_labels_are_no_yes_or_no(eyes: Path, tmp_path: Path) -> None:
    rows = ["path,labels"]
    rows += [
        f"{eyes.parent}/{name}/{n:02}.png,{('a', 'b', 'a|b')[n % 3]}"
        for name in ("open", "closed")
        for n in range(24)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    given = {"data": str(tmp_path / "labels.csv"), "weights": "none", "output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match="one logit for two classes that exclude each other"):
        ws.finetune(**given, model="ocec", device="cpu")


def test_a_margin_head_and_back_is_restored(settings: dict[str, Any], tmp_path: Path) -> None:
    small = settings | {"epochs": 1}
    parent = finetuned(**small, weights="none", model="ocec-c8-b2", margin_method="arcface")
    again = small | {"output_dir": str(tmp_path / "back"), "margin_method": "none"}
    run = finetuned(**again, weights=str(parent.path))
    measured = ws.evaluate(str(run.path), settings["data"], split="val", device="cpu")
    best = run.pointer(layout.BEST)
    recorded = next(row for row in run.evals.rows if row["split"] == "val" and row["step"] == best)
    assert measured.metrics["loss"] == pytest.approx(recorded["loss"], abs=1e-5)
