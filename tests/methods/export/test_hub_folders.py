"""Folders of timm and transformers: images that these libraries prepare get the model's own answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import warmstart as ws
from tiny_transformers import TOKENS, saved, tiny
from warmstart.config.schema import DataConfig, ModelConfig
from warmstart.data.batches import View
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference
from warmstart.inference.restore import Restored, restore
from warmstart.methods.export.answer import hf_inputs, timm_inputs
from warmstart.methods.export.export import ExportRequest, export
from warmstart.methods.export.hub_folders import write_hf, write_timm
from warmstart.models.build import BuiltModel, build, metadata_for

CLASSES = ("ant", "bee", "cat")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    vit = tiny("ForImageClassification", "ViT", num_labels=3, **TOKENS)
    return saved(vit, tmp_path_factory.mktemp("vit"))[0]


def made(name: str, **preprocessing: object) -> BuiltModel:
    built = build(ModelConfig(name=name, weights=None if name[:2] == "hf" else "none"), {}, CLASSES, seed=0)
    built.module.eval()
    return replace(built, preprocessing=replace(built.preprocessing, **preprocessing))


def bare(built: BuiltModel) -> Restored:
    return Restored(built, WeightsReference(None), False)


def ours(built: BuiltModel, file: Path, native: bool = False) -> np.ndarray:
    """The normalised input (C, h, w) of an image file."""
    view = View(built.preprocessing, native)
    pixels = view.finish(
        [view.resize(np.asarray(Image.open(file).convert("RGB")))], np.zeros(1, np.uint64), 0
    )[0]
    mean, std = np.array(built.preprocessing.mean), np.array(built.preprocessing.std)
    return np.moveaxis((pixels / 255 - mean) / std, -1, 0)


def wave(file: Path, height: int, width: int) -> Path:
    """A smooth picture: what is left between two ways to weigh its pixels is little, and a moved one is seen."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 100 * np.sin(x / 25), 128 + 100 * np.sin(y / 20), 128 + 100 * np.sin((x + y) / 40)]
    Image.fromarray(np.dstack(planes).round().astype(np.uint8)).save(file)
    return file


def test_images_of_the_inputs_size_are_taken_as_they_are(overlapping: Path, tmp_path: Path) -> None:
    settings = {"model": "timm:test_resnet", "weights": "none", "image_size": "16", "batch_size": 8}
    settings |= {"workers": 0, "device": "cpu", "tensorboard": False, "max_steps": 1, "lr": 0.01}
    settings |= {"train_ratio": 0.6, "val_ratio": 0.25, "output_dir": str(tmp_path / "run")}
    run = str(ws.finetune(data=str(overlapping), **settings).run)
    built = restore(run, CPU).built
    write_timm(restore(run, CPU), tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text(encoding="utf-8"))
    assert config["pretrained_cfg"]["crop_pct"] == 1
    files = sorted(overlapping.glob("*/*.png"))
    inputs = np.stack([ours(built, file, native=True) for file in files]).astype(np.float32)
    colours = [tmp_path / f"{number}.png" for number in range(len(files))]
    for file, colour in zip(files, colours, strict=True):
        Image.open(file).convert("RGB").save(colour)
    np.testing.assert_allclose(timm_inputs(tmp_path / "timm", colours), inputs, atol=1e-5)
    # A file says nothing of the size of its run's images: then the images themselves show it.
    assert built.preprocessing.crop_pct < 1
    with torch.no_grad():  # decisions that hang on the image, and not on the class
        built.module.fc.weight.mul_(100)
        built.module.fc.bias.sub_(built.module(torch.from_numpy(inputs)).mean(0))
    state = {name: tensor.contiguous() for name, tensor in built.module.state_dict().items()}
    save_file(state, tmp_path / "m.safetensors", metadata_for(built))
    request = ExportRequest("timm", str(tmp_path / "other"), DataConfig(path=str(overlapping)), 42)
    with pytest.raises(UserError, match=r"prepares images otherwise, and was not kept: (.|\n)*--crop-pct 1"):
        export(request, restore(str(tmp_path / "m.safetensors"), CPU))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stretch", [False, True])
def test_a_processor_covers_the_input(vit: str, stretch: bool, tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(90, 60), (60, 90)]):
        picture = wave(tmp_path / f"{number}.png", height, width)
        for crop_pct in (0.875, 1.0):
            built = made(vit, image_size=(32, 32), crop_pct=crop_pct, stretch=stretch)
            write_hf(bare(built), tmp_path / f"hf-{number}-{crop_pct}")
            found = hf_inputs(tmp_path / f"hf-{number}-{crop_pct}", [picture])[0]
            np.testing.assert_allclose(found, ours(built, picture), atol=0.15)
            assert made(f"hf:{tmp_path}/hf-{number}-{crop_pct}").preprocessing.stretch == stretch
            for size in ((32, 32), (48, 32)):
                timms = made("timm:test_resnet", image_size=size, crop_pct=crop_pct, stretch=stretch)
                folder = tmp_path / f"timm-{number}-{crop_pct}-{size[0]}"
                write_timm(bare(timms), folder)
                np.testing.assert_allclose(timm_inputs(folder, [picture])[0], ours(timms, picture), atol=0.15)
    tall = made(vit, image_size=(48, 32), stretch=stretch)
    if stretch:
        write_hf(bare(tall), tmp_path / "tall")
        np.testing.assert_allclose(hf_inputs(tmp_path / "tall", [picture])[0], ours(tall, picture), atol=0.15)
    else:
        with pytest.raises(UserError, match="--to hf: an input of 48x32 that images are resized to cover"):
            write_hf(bare(tall), tmp_path / "tall")


@pytest.mark.parametrize("multi_label", [False, True])
def test_transformers_knows_what_the_outputs_mean(vit: str, multi_label: bool, tmp_path: Path) -> None:
    kind = f"{'multi' if multi_label else 'single'}_label_classification"
    for name in (vit, "timm:test_resnet"):
        built = replace(made(name, image_size=(32, 32)), multi_label=multi_label)
        write_hf(bare(built), tmp_path / name[:2])
        config = transformers.AutoConfig.from_pretrained(tmp_path / name[:2])
        assert config.problem_type == kind
        again = restore(str(tmp_path / name[:2]), CPU).built
        assert (again.classes, again.multi_label) == (CLASSES, multi_label)
        image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(again.module(image), built.module(image), atol=1e-6, rtol=0)
