"""ONNX files: the answers of every kind of model under ONNX Runtime, what they say of themselves; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from tiny_clip import make_model, make_tokenizer
from torch import Tensor, nn

from warmstart.config.schema import ModelConfig, TextConfig
from warmstart.errors import UserError
from warmstart.inference.onnx_build import build_onnx
from warmstart.inference.reference import WeightsReference
from warmstart.inference.restore import Restored, restore
from warmstart.methods.export.answer import READERS, batches
from warmstart.methods.export.export import ExportRequest, export
from warmstart.methods.export.hub_folders import write_hf, write_timm
from warmstart.methods.export.onnx_file import write_onnx
from warmstart.methods.export.program_file import write_program
from warmstart.models.build import BuiltModel, build
from warmstart.models.image_text.prompts import Texts
from warmstart.models.recipe import FACTORISE, LOW_RANK, apply
from warmstart.records import Edit, Recipe, Thresholds

CLASSES = ("ant", "bee", "cat")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str, **given: Any) -> BuiltModel:
    built = build(ModelConfig(name=name, weights="none"), given, CLASSES, seed=0)
    with torch.no_grad():
        for parameter in built.module.parameters():  # some heads and last norms begin at zero
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    built.module.eval()
    return built


def images_of(built: BuiltModel, num: int = 4) -> np.ndarray:
    shape = (num, built.preprocessing.num_channels, *built.preprocessing.image_size)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def answers(to: str, path: Path, images: np.ndarray) -> np.ndarray:
    reader = READERS[to](path, {})
    return np.concatenate([reader(images[part]) for part in batches(len(images))])


def wanted(built: BuiltModel, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return built.module(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip, segformer: as save_pretrained writes them, of random weights."""
    transformers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[1, 2], decoder_hidden_size=16, num_labels=3,
        num_encoder_blocks=2, strides=[4, 2], patch_sizes=[7, 3], sr_ratios=[2, 1], mlp_ratios=[2, 2],
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(root / "segformer")
    return root


TIMM = {
    "timm:test_resnet": {"image_size": (32, 32), "mean": (0.5,), "std": (0.5,)},
    "timm:test_vit": {"image_size": (32, 32)},
    "timm:test_convnext": {"image_size": (32, 32)},
}
OTHERS = {
    "torchvision:squeezenet1_1": {"image_size": (32, 32)},
    "smp:Unet/tu-test_resnet": {"image_size": (32, 32)},
}


@pytest.mark.parametrize("name", [*TIMM, *OTHERS])
def test_the_graph_answers_as_the_model_for_any_number_of_images(name: str, tmp_path: Path) -> None:
    built = made(name, **{**TIMM, **OTHERS}[name])
    write_onnx(built, tmp_path / "m.onnx")
    images = images_of(built)
    expected = wanted(built, images)
    np.testing.assert_allclose(
        answers("onnx", tmp_path / "m.onnx", images), expected, atol=1e-4 * np.abs(expected).max()
    )
    again = build_onnx(tmp_path / "m.onnx", {})
    assert (again.classes, again.preprocessing, again.segments) == (
        CLASSES,
        built.preprocessing,
        built.segments,
    )


@pytest.mark.parametrize("name", list(TIMM))
@pytest.mark.parametrize(("to", "write"), [("timm", write_timm), ("hf", write_hf)])
def test_timm_and_transformers_load_the_folder(name: str, to: str, write: Any, tmp_path: Path) -> None:
    built = made(name, **TIMM[name])
    write(Restored(built, WeightsReference(None), False), tmp_path / "m")
    images = images_of(built)
    np.testing.assert_allclose(answers(to, tmp_path / "m", images), wanted(built, images), rtol=0, atol=1e-6)


def test_transformers_own_models_and_a_program(folders: Path, tmp_path: Path) -> None:
    built = build(ModelConfig(name=f"hf:{folders}/segformer"), {"image_size": (32, 32)}, CLASSES, seed=0)
    built.module.eval()
    restored, images = Restored(built, WeightsReference(None), False), images_of(built)
    write_hf(restored, tmp_path / "m")
    write_program(restored, tmp_path / "m.pt2")
    assert built.segments
    for to, path in (("hf", tmp_path / "m"), ("torch-export", tmp_path / "m.pt2")):
        np.testing.assert_allclose(answers(to, path, images), wanted(built, images), rtol=0, atol=1e-6)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m")
    grey = np.full((40, 60, 3), 128, np.uint8)
    prepared = np.asarray(processor(grey)["pixel_values"][0])
    mean, std = (
        np.reshape(values, (3, 1, 1)) for values in (built.preprocessing.mean, built.preprocessing.std)
    )
    np.testing.assert_allclose(prepared, np.broadcast_to((128 / 255 - mean) / std, (3, 32, 32)), atol=1e-5)
    extra = {"warmstart.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert '"ant"' in extra["warmstart.json"]


def test_an_image_tower_keeps_the_answers_that_its_texts_gave(folders: Path, tmp_path: Path) -> None:
    texts = Texts(TextConfig(head="contrastive"))
    built = build(
        ModelConfig(name=f"hf:{folders}/clip"), {}, ("red_circle", "blue_square"), seed=0, text=texts
    )
    built.module.eval()
    write_onnx(built, tmp_path / "m.onnx")
    images = images_of(built)
    np.testing.assert_allclose(
        answers("onnx", tmp_path / "m.onnx", images), wanted(built, images), rtol=0, atol=1e-4
    )
    with pytest.raises(UserError, match=r"--to hf: hf:.*clip.* is none of its models"):
        write_hf(Restored(built, WeightsReference(None), False), tmp_path / "hf")


def test_what_a_file_says_comes_back_and_what_it_does_not_say_is_asked_for(tmp_path: Path) -> None:
    built = made("builtin:fashion_cnn")
    sets = replace(built, multi_label=True, thresholds=Thresholds((0.2, 0.5, 0.9)))
    write_onnx(sets, tmp_path / "sets.onnx", beside={"licence": "mit"})
    again = restore(str(tmp_path / "sets.onnx"), CPU)
    assert again.built.multi_label and again.built.licence == "mit"
    assert again.task.thresholds == (0.2, 0.5, 0.9)
    graph = onnx.load(tmp_path / "sets.onnx")
    path = tmp_path / "others.onnx"
    told = {"classes": '["ant", "bee", "cat"]', "thresholds": '{"values": [0.5]}'}
    del graph.metadata_props[:]
    onnx.save(graph, path)
    with pytest.raises(
        UserError, match=r"others\.onnx does not state its mean, std\n(.|\n)*--mean VALUE --std VALUE"
    ):
        restore(str(path), CPU)
    given = {"mean": (0.5,), "std": (0.5,)}
    named = restore(str(path), CPU, overrides=given).built
    assert named.classes == ("0", "1", "2") and not named.names_known
    assert named.preprocessing.image_size == (28, 28)
    with pytest.raises(UserError, match=r"--task eyes: .*others\.onnx is one graph"):
        restore(str(path), CPU, task="eyes")
    with pytest.raises(UserError, match=r"--model-name timm:x: .*others\.onnx is one graph"):
        restore(str(path), CPU, name="timm:x")
    onnx.helper.set_model_props(graph, told)
    onnx.save(graph, path)
    with pytest.raises(UserError, match="answers with 3 classes, and its metadata speak of 3, 1"):
        restore(str(path), CPU, overrides=given)


def test_a_compressed_model_goes_where_its_graph_or_recipe_does(tmp_path: Path) -> None:
    built = made("timm:test_resnet", image_size=(32, 32))
    recipe = Recipe((Edit(FACTORISE, {"layer4.0.conv2": {"rank": 2, "form": LOW_RANK}}),))
    apply(built.module, recipe)
    for name in ("weight", "bias"):
        for part in built.module.get_submodule("layer4.0.conv2"):
            if getattr(part, name) is not None:
                nn.init.normal_(getattr(part, name))
    restored = Restored(replace(built, recipe=recipe), WeightsReference(None), False)
    images = images_of(built)
    write_onnx(restored.built, tmp_path / "m.onnx")
    expected = wanted(built, images)
    np.testing.assert_allclose(
        answers("onnx", tmp_path / "m.onnx", images), expected, atol=1e-4 * np.abs(expected).max()
    )
    target = tmp_path / "m.safetensors"
    export(ExportRequest("safetensors", str(target), num_images=3), restored)
    again = restore(str(target), CPU).built
    assert again.recipe == recipe
    np.testing.assert_allclose(wanted(again, images), expected, rtol=0, atol=1e-6)
    for to in ("hf", "timm", "source"):
        with pytest.raises(UserError, match=rf"--to {to}: .* is compressed \(factorise\)"):
            export(ExportRequest(to, str(tmp_path / "m")), restored)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if x.mean() > 0 else -x.flatten(1)[:, :3]


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0, :3, :3]).real


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([image.flatten()[:3] for image in x])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branch(), r"torch\.export cannot trace it .*test_onnx_file\.py:\d+, in forward: .*x\.mean\(\) > 0"),
        (Eigenvalues(), r"it uses the operator aten\.linalg_eig, which has no form there"),
        (Loop(), r"can be exported for one number of images only"),
    ],
    ids=["branch", "operator", "batch"],
)
def test_what_cannot_be_traced_is_named(module: nn.Module, message: str, tmp_path: Path) -> None:
    built = replace(made("builtin:fashion_cnn"), module=module)
    with pytest.raises(UserError, match=message):
        write_onnx(built, tmp_path / "m.onnx")
    if not isinstance(module, Eigenvalues):  # torch has all of its own operators
        with pytest.raises(UserError, match=message):
            write_program(Restored(built, WeightsReference(None), False), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
