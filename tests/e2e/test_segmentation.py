"""Segmentation end to end: coloured fields whose mask is known, trained, resumed, evaluated and predicted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score

import fresh
import warmstart as ws
from warmstart.config.io import load
from warmstart.engine.state import TrainState
from warmstart.errors import Interrupted, UserError
from warmstart.inference.predictions import read_predictions
from warmstart.models.builtin.microsegformer import MicroSegFormer
from warmstart.run import layout, reader

CLASSES = ("left", "right", "ground")
VOID = 9
SETTINGS: dict[str, Any] = {
    "model": "builtin:microsegformer", "weights": "none", "image_size": "32x48", "augment": "standard", "workers": 0,
    "device": "cpu", "tensorboard": False, "pictures": False, "batch_size": 8, "lr": 2e-3,
    "mask_classes": ",".join(CLASSES),
    "ignore": VOID, "flip_pairs": "left:right", "dice_weight": 1.0,
}  # fmt: skip


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two wings (a red one on the left, a green one on the right) above blue ground, with a void border between."""
    height, width = 48, 72
    horizon, middle = int(rng.integers(16, 32)), int(rng.integers(28, 44))
    mask = np.full((height, width), 2, np.uint8)
    mask[:horizon, :middle], mask[:horizon, middle:] = 0, 1
    image = np.eye(3, dtype=np.uint8)[mask] * 150 + rng.integers(0, 100, (height, width, 3)).astype(np.uint8)
    mask[horizon - 1 : horizon + 1] = VOID
    return image, mask


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fields")
    rng = np.random.default_rng(0)
    for split, number in (("train", 48), ("val", 12), ("test", 12)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for name in range(number):
            image, mask = draw(rng)
            Image.fromarray(image).save(root / split / "images" / f"{name:03}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{name:03}.png")
    return root


@pytest.fixture(scope="module")
def run(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = ws.finetune(data=str(fields), epochs=4, output_dir=folder, **SETTINGS)
    assert result.metrics["miou"] > 0.6, result.metrics
    return folder


def test_evaluation_is_that_of_sklearn(run: Path, fields: Path) -> None:
    """From the files alone: our own model class, plain pixels, sklearn's IoU."""
    result = ws.evaluate(str(run), split="test", device="cpu")
    weights, metadata = reader.model_file(str(run))[2], json.loads((run / "resolved.json").read_text())
    module = MicroSegFormer(num_classes=3, dropout=0.0).eval()
    module.load_state_dict(load_file(weights))
    assert metadata["data"]["ignore"] == VOID
    said, true = [], []
    for file in sorted((fields / "test" / "images").iterdir()):
        small = Image.open(file).resize((48, 32), Image.Resampling.BOX)
        pixels = torch.tensor(np.asarray(small), dtype=torch.float32).permute(2, 0, 1)[None] / 255
        said.append(module(pixels).argmax(1)[0].numpy())
        mask = Image.open(fields / "test" / "masks" / file.name).resize((48, 32), Image.Resampling.NEAREST)
        true.append(np.asarray(mask))
    valid = np.stack(true) != VOID
    expected = jaccard_score(np.stack(true)[valid], np.stack(said)[valid], average="macro")
    assert result.metrics["miou"] == pytest.approx(expected, abs=0.01)  # two libraries' pixels
    accuracy = (np.stack(true)[valid] == np.stack(said)[valid]).mean()
    assert result.metrics["accuracy"] == pytest.approx(accuracy, abs=0.01)


def test_what_was_kept_gives_the_same_metrics(run: Path) -> None:
    kept = read_predictions(run / "predictions" / layout.predictions_name("test", 0))
    assert kept.targets is None
    assert kept.scores.shape == (12, 3 * 3 + 2)
    rows = [row for row in reader.open_run(run).evals.rows if row["step"] == 0 and row["split"] == "test"]
    hits, said, true = kept.scores[:, :9].reshape(12, 3, 3).sum(axis=0)
    assert rows[0]["miou"] == pytest.approx(np.nanmean(hits / (said + true - hits)))
    assert rows[0]["accuracy"] == pytest.approx(hits.sum() / kept.scores[:, -1].sum())


def test_gain_is_paired_by_image(run: Path) -> None:
    (gain,) = [gain for gain in reader.open_run(run).gains if gain["split"] == "test"]
    assert gain["metric"] == "miou"
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert gain["fixed"] + gain["broken"] <= 12
    assert "images with a higher mIoU" in gain["change"]


def test_interrupted_run_ends_with_the_same_weights(
    run: Path, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = TrainState.advance

    def stop(self: TrainState, steps_per_epoch: int) -> None:
        advance(self, steps_per_epoch)
        if self.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainState, "advance", stop)
    with pytest.raises(Interrupted):
        ws.finetune(data=str(fields), epochs=4, output_dir=tmp_path / "run", **SETTINGS)
    monkeypatch.undo()
    ws.resume(str(tmp_path / "run"))
    last = [
        next((folder / "checkpoints").glob("step_*24")) / layout.MODEL for folder in (run, tmp_path / "run")
    ]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_masks_of_new_images(run: Path, fields: Path, tmp_path: Path) -> None:
    result = ws.predict(
        str(run), [str(fields / "test" / "images")], output=str(tmp_path / "out"), scales="1,1.25", flip=True
    )
    assert len(result.to_json()["predictions"]) == 12
    one = ws.predict(str(run), [str(fields / "test" / "images")], output=str(tmp_path / "one"), batch_size=1)
    assert len(one.to_json()["predictions"]) == 12
    with pytest.raises(ws.UserError, match=r"--top-k 3: .* gives one class per pixel"):
        ws.predict(str(run), [str(fields / "test" / "images")], output=str(tmp_path / "two"), top_k=3)
    right = total = 0
    for file in sorted((fields / "test" / "masks").iterdir()):
        said = np.asarray(Image.open(tmp_path / "out" / "masks" / file.name))
        true = np.asarray(Image.open(file))
        assert said.shape == true.shape
        right, total = right + (said == true)[true != VOID].sum(), total + (true != VOID).sum()
    assert right / total > 0.75
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 12


def test_a_child_starts_where_its_parent_ended(run: Path, fields: Path, tmp_path: Path) -> None:
    settings = {
        name: value for name, value in SETTINGS.items() if name not in ("model", "weights", "image_size")
    }
    child = ws.finetune(str(run), str(fields), max_steps=1, output_dir=tmp_path / "child", **settings)
    start = next(gain for gain in child.gains if gain.split == "val").start["miou"]
    best = max(row["miou"] for row in reader.open_run(run).evals.rows if row["split"] == "val")
    assert start == pytest.approx(best)


def test_the_f_score_of_batches_is_of_the_training_batches(run: Path, tmp_path: Path) -> None:
    """`evaluate` repeats it at any batch size; a child of another one measures its parent's best again."""
    rows = [row for row in reader.open_run(run).evals.rows if row["split"] == "val"]
    best = next(row for row in rows if row["step"] == reader.open_run(run).pointer(layout.BEST))
    found = ws.evaluate(str(run), split="val", batch_size=5, device="cpu")
    assert found.metrics["fscore_per_batch"] == pytest.approx(best["fscore_per_batch"], rel=1e-6)
    assert "batches of 8 images" in found.text()
    values = {}
    for size, origin in ((8, "recorded"), (5, "measured on this run's val")):
        ws.continue_run(
            str(run), keep="weights", epochs=1, select_by="fscore_per_batch", batch_size=size, continue_info=True,
            output_dir=tmp_path / str(size),
        )  # fmt: skip
        child = reader.open_run(tmp_path / str(size))
        bar, start = child.resolved["parent"]["bar"], child.evals.rows[0]
        assert (start["split"], start["step"]) == ("val", 0)
        assert bar["origin"] == origin and bar["value"] == pytest.approx(start["fscore_per_batch"], rel=1e-6)
        values[size] = bar["value"]
        info = yaml.safe_load((child.path / layout.CONTINUE_INFO).read_text())
        assert info["previous_best_f_score"] == bar["value"]
    assert abs(values[5] - values[8]) > 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "builtin:fashion_cnn"}, "masks"),
        ({"ignore": 8}, "9"),
        ({"mask_classes": "a,b"}, "ids"),
        ({"flip_pairs": "left:up"}, "up"),
        ({"mixup": 0.2}, "mixup"),
        ({"select_by": "f1"}, "select-by"),
    ],
)
def test_what_does_not_fit_is_refused(
    fields: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        ws.finetune(data=str(fields), epochs=1, output_dir=tmp_path / "run", **{**SETTINGS, **changes})
    assert not (tmp_path / "run").exists()


def other_data(root: Path, names: list[str] | None, num_classes: int) -> Path:
    """Six images without splits, whose masks hold the first `num_classes` ids."""
    rng = np.random.default_rng(5)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name in range(6):
        image, mask = draw(rng)
        mask[mask == 2] = VOID if num_classes == 2 else 2
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    if names is not None:
        (root / "classes.txt").write_text("\n".join(names))
    return root


def test_check_measures_masks(run: Path, fields: Path, tmp_path: Path) -> None:
    found = ws.check(str(run), str(fields), batch_size=12, device="cpu")
    assert found.num_samples == 12
    assert found.metrics is not None
    assert found.metrics["miou"] == ws.evaluate(str(run), split="test", device="cpu").metrics["miou"]
    assert f"mIoU {found.metrics['miou']:.4f} (95 % interval" in found.text()
    assert not found.notes
    state = load_file(reader.model_file(str(run))[2])
    (head,) = [name for name, tensor in state.items() if tensor.ndim == 4 and len(tensor) == 3]
    state[head].zero_()
    state[head.replace("weight", "bias")].copy_(torch.tensor([1.0, 0.0, 0.0]))
    torch.save(state, tmp_path / "same.pt")
    bare = ws.check(str(tmp_path / "same.pt"), str(fields), device="cpu", **BARE)
    assert "every pixel gets the same class" in bare.notes
    new = other_data(tmp_path / "new", ["left", "right", "sea"], 3)
    found = ws.check(str(run), str(new), device="cpu", mask_classes=new / "classes.txt")
    assert found.metrics is None and any("sea" in note for note in found.notes)


BARE: dict[str, Any] = {
    "model_name": "builtin:microsegformer", "image_size": "32x48", "ignore": VOID, "mask_classes": "left,right,ground",
}  # fmt: skip


def test_a_bare_file_is_told_how_masks_are_read(run: Path, fields: Path, tmp_path: Path) -> None:
    torch.save(load_file(reader.model_file(str(run))[2]), tmp_path / "bare.pt")
    said = ["--model-name", "builtin:microsegformer", "--image-size", "32x48", "--ignore", str(VOID)]
    bare = [str(tmp_path / "bare.pt"), "--data", str(fields), "--device", "cpu", "--json", *said]
    own = ws.evaluate(str(run), split="test", device="cpu").metrics["miou"]
    for verb in ("evaluate", "check"):
        done = fresh.run(verb, *bare, module="warmstart")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["metrics"]["miou"] == pytest.approx(own, abs=1e-3)
    with pytest.raises(UserError, match="--ignore without --data"):
        ws.evaluate(str(run), ignore=VOID)


@pytest.mark.parametrize("names", [None, ["left", "right"]])
def test_other_masks_without_the_highest_class(
    fields: Path, tmp_path: Path, run: Path, names: list[str] | None
) -> None:
    """A run whose classes were named by a file beside its own data."""
    for kind in ("train", "val"):
        (tmp_path / "own" / kind).parent.mkdir(exist_ok=True)
        (tmp_path / "own" / kind).symlink_to(fields / kind)
    (tmp_path / "own" / "classes.txt").write_text("\n".join(CLASSES))
    settings = {name: value for name, value in SETTINGS.items() if name != "mask_classes"}
    trained = tmp_path / "run"
    ws.finetune(data=str(tmp_path / "own"), max_steps=1, output_dir=trained, **settings)
    result = ws.evaluate(str(trained), str(other_data(tmp_path / "other", names, 2)), device="cpu")
    assert [row["pixels"] > 0 for row in result.per_class] == [True, True, False]
    assert result.classes == CLASSES and result.num_samples == 6
    with pytest.raises(UserError, match="otherwise"):
        ws.evaluate(str(trained), str(other_data(tmp_path / "swapped", ["right", "left"], 2)), device="cpu")


def test_init_proposes_a_model_for_masks(fields: Path, tmp_path: Path) -> None:
    model = load({}, ws.init(str(fields), output=str(tmp_path / "start.yaml"))).config.model
    assert (model.name, model.weights) == ("builtin:microsegformer", "none")


def test_class_folders_have_no_masks(overlapping: Path, tmp_path: Path) -> None:
    settings = {name: SETTINGS[name] for name in ("model", "weights", "image_size", "device")}
    with pytest.raises(UserError, match="no masks"):
        ws.finetune(data=str(overlapping), epochs=1, output_dir=tmp_path / "run", **settings)


def test_models_with_a_slash_in_their_names(fields: Path, tmp_path: Path) -> None:
    """Not a path: `smp:Unet/resnet18`."""
    settings = {**SETTINGS, "image_size": "32x64"}
    del settings["model"]
    run = ws.finetune("smp:Unet/resnet18", str(fields), max_steps=1, output_dir=tmp_path / "run", **settings)
    assert reader.open_run(run.run).resolved["model"]["name"].lower() == "smp:unet/resnet18"


def test_images_without_a_valid_pixel(fields: Path, tmp_path: Path) -> None:
    """Among the training images they say nothing about the start model; val must have some."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((fields / split / "images").iterdir())[:6]):
            for kind in ("images", "masks"):
                shutil.copy(fields / split / kind / file.name, tmp_path / "data" / split / kind)
            if split == "train" and number:
                void = Image.fromarray(np.full((48, 72), VOID, np.uint8))
                void.save(tmp_path / "data" / split / "masks" / file.name)
    data = str(tmp_path / "data")
    ws.finetune(data=data, max_steps=2, output_dir=tmp_path / "run", **SETTINGS)
    for file in (tmp_path / "data" / "val" / "masks").iterdir():
        Image.fromarray(np.full((48, 72), VOID, np.uint8)).save(file)
    with pytest.raises(UserError, match="no pixel of the val images"):
        ws.finetune(data=data, max_steps=2, output_dir=tmp_path / "other", **SETTINGS)
