"""Models of transformers from folders that save_pretrained wrote: tiny, random, real."""

from __future__ import annotations

import builtins
import shutil
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from tiny_transformers import MIT, STAGES, TOKENS, WINDOWS, saved, tiny
from warmstart.config.schema import ModelConfig
from warmstart.data.batches import View
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.models.blocks import find_blocks
from warmstart.models.build import build, metadata_for
from warmstart.models.hf_zoo import _CONFIGS
from warmstart.models.zoo import create, outline, split_name

CLASSES = ("ant", "bee", "cat")
CLASSIFIERS = {
    "ViT": tiny("ForImageClassification", "ViT", num_labels=3, **TOKENS),
    "Swin": tiny("ForImageClassification", "Swin", num_labels=3, **WINDOWS),
    "ConvNeXt": tiny("ForImageClassification", "ConvNext", num_labels=3, **STAGES),
    "ResNet": tiny("ForImageClassification", "ResNet", num_labels=3, embedding_size=8, **STAGES),
    "SegFormer": tiny("ForSemanticSegmentation", "Segformer", num_labels=3, **MIT),
}
BACKBONES = {
    "DINOv2": tiny("Model", "Dinov2", **TOKENS),
    "DINOv3": tiny("Model", "DINOv3ViT", **TOKENS),
    "DINOv3 ConvNeXt": tiny("Model", "DINOv3ConvNext", **STAGES),
    "MiT": tiny("Model", "Segformer", **MIT),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_folder_with_a_classifier(kind: str, tmp_path: Path) -> None:
    name, theirs = saved(CLASSIFIERS[kind], tmp_path)
    built = build(ModelConfig(name=name), {"image_size": (32, 32)}, CLASSES, seed=0)
    assert built.segments == outline(name).segments == (kind == "SegFormer")
    assert (built.name, built.head_change.kind, built.source["kind"]) == (name, "kept", "pretrained")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = built.module.eval()(images)
        assert torch.equal(found, theirs(images).logits)
    assert found.shape == ((2, 3, 8, 8) if built.segments else (2, 3))
    assert set(built.module.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize("kind", [*CLASSIFIERS, *BACKBONES])
def test_blocks_stand_in_the_order_of_computing(kind: str, tmp_path: Path) -> None:
    name, _ = saved((CLASSIFIERS | BACKBONES)[kind], tmp_path)
    made = create(name, num_classes=3, image_size=(32, 32))
    blocks = find_blocks(made.module, made.head)
    named = dict(made.module.named_parameters())
    assert sorted(chain(*(b.parameters for b in blocks))) == sorted(named)
    assert len(blocks) >= 4 and blocks[-1].parameters == (f"{made.head}.weight", f"{made.head}.bias")
    order: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, path=path: order.append(path))
        for path, module in made.module.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        made.module.eval()(torch.rand(1, 3, 32, 32))
    assert hooks
    spans = [
        [order.index(path) for path in {n.rpartition(".")[0] for n in b.parameters} if path in order]
        for b in blocks
    ]
    assert all(max(before) < min(later) for before, later in pairwise(spans))


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_gets_a_linear_head(kind: str, tmp_path: Path) -> None:
    name, theirs = saved(BACKBONES[kind], tmp_path)
    built = build(ModelConfig(name=name), {"image_size": (32, 32)}, CLASSES, seed=0)
    assert built.head == "classifier" and built.head_change.reason == "the weights hold no classifier"
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert built.module.eval()(images).shape == (2, 3)
    own = {key.partition(".")[2]: tensor for key, tensor in built.module.state_dict().items()}
    assert all(torch.equal(own[key], tensor) for key, tensor in theirs.state_dict().items() if key in own)
    assert len(set(own) & set(theirs.state_dict())) == len(theirs.state_dict())


@pytest.mark.parametrize("kind", ["ViT", "SegFormer", "DINOv3"])
def test_a_trained_model_needs_its_folder_no_more(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    name, _ = saved(
        (CLASSIFIERS | BACKBONES)[kind], folder, image_mean=[0.5] * 3, size={"height": 32, "width": 32}
    )
    built = build(ModelConfig(name=name, weights="none"), {}, CLASSES, seed=0)
    file = tmp_path / "m.safetensors"
    save_file(built.module.state_dict(), file, metadata=metadata_for(built))
    shutil.rmtree(folder)
    again = build(ModelConfig(weights=str(file)), {}, None, seed=7)
    assert (again.name, again.classes, again.segments) == (name, CLASSES, built.segments)
    assert again.preprocessing == built.preprocessing and not again.notes
    assert again.preprocessing.mean == (0.5, 0.5, 0.5) and again.preprocessing.image_size == (32, 32)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(images), built.module.eval()(images))
    del _CONFIGS[str(folder)]  # as in a new process
    with pytest.raises(UserError, match=r"is no folder with a config\.json"):
        split_name(name)


@pytest.mark.parametrize(
    ("processor", "size", "crop_pct", "mean"),
    [
        ({"size": {"height": 48, "width": 64}, "image_mean": [0.5] * 3}, (48, 64), 1.0, 0.5),
        ({"size": 40}, (40, 40), 1.0, 0.485),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_normalize": False}, (224, 224), 0.875, 0.0),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            (224, 224),
            0.875,
            0.485,
        ),
    ],
)
def test_the_processor_prepares_the_pixels(
    processor: dict[str, Any], size: tuple[int, int], crop_pct: float, mean: float, tmp_path: Path
) -> None:
    name, _ = saved(CLASSIFIERS["ConvNeXt"], tmp_path, **processor)
    made = create(name)
    found = made.preprocessing
    assert (found.image_size, found.crop_pct, found.mean[0], made.notes) == (size, crop_pct, mean, ())


PROCESSORS = {
    "ViT": lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 48}),
    "DINOv2": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}
    ),
    "ConvNeXt": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.75),
    "large ConvNeXt": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_models_own_processor(kind: str, tmp_path: Path) -> None:
    """On a wide image, which some processors stretch and others crop; its slopes show which place is which."""
    make = CLASSIFIERS["ConvNeXt"]
    processor = PROCESSORS[kind]()
    name, _ = saved(make, tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    built = build(ModelConfig(name=name), {}, CLASSES, seed=0)
    rows, columns = np.mgrid[0:90, 0:160]
    image = np.stack([rows * 2, columns * 1.5, 255 - columns], axis=2).astype(np.uint8)
    theirs = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    view = View(built.preprocessing)
    batch = view.finish([view.resize(image)], np.zeros(1, np.uint64), 0)
    ours = InputBuffer(built.preprocessing, torch.device("cpu"), False)(batch).numpy()
    assert ours.shape == theirs.shape
    # A level in 255 is .02 here; filters differ by one or two of them.
    assert np.abs(ours - theirs).max() < 0.1
    file = tmp_path / "m.safetensors"
    save_file(built.module.state_dict(), file, metadata=metadata_for(built))
    shutil.rmtree(tmp_path / "m")
    again = build(ModelConfig(weights=str(file)), {}, None, seed=7)
    assert again.preprocessing == built.preprocessing


def test_classes_dropout_and_notes(tmp_path: Path) -> None:
    labels = {0: "bee", 1: "ant"}
    make = tiny("ForSemanticSegmentation", "Segformer", id2label=labels, label2id={"bee": 0, "ant": 1}, **MIT)
    name, theirs = saved(make, tmp_path, do_reduce_labels=True)
    built = build(ModelConfig(name=name, dropout=0.25), {"image_size": (64, 64)}, CLASSES, seed=0)
    assert built.head_change.kept == ("ant", "bee") and built.head_change.new == ("cat",)
    assert built.notes == ("its masks were numbered from 1, with 0 ignored: class 0 is number 1 there",)
    assert built.module.get_submodule("decode_head.dropout").p == 0.25
    head = built.module.get_submodule("decode_head.classifier")
    assert torch.equal(head.weight[0], theirs.decode_head.classifier.weight[1])
    assert (
        create(name).notes
        and "has no preprocessor_config.json" in create(saved(make, tmp_path / "b")[0]).notes[0]
    )


def test_what_is_no_model_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hf:\./nowhere is no folder with a config\.json \(no such folder\)"):
        split_name("hf:./nowhere")
    with pytest.raises(UserError, match="it is empty"):
        split_name(f"hf:{tmp_path}")
    config = tmp_path / "config.json"
    for text, message in (
        ('{"architecture": "resnet18"}', r"holds a model of timm \(resnet18\)"),
        ('{"model_type": "mine", "auto_map": {}}', "is of the type 'mine'"),
        ("{", "is not JSON"),
        (
            '{"model_type": "bert"}',
            "transformers cannot build|has not one linear classifier|cannot run on images",
        ),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=message):
            create(f"hf:{tmp_path}")
    name, _ = saved(CLASSIFIERS["ViT"], tmp_path)
    with pytest.raises(UserError, match="cannot run on images of 64x64 pixels: Input image size"):
        create(name, image_size=(64, 64))
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for content, said in ((whole[:-100], "is damaged"), (b"", "is damaged"), (None, "holds no weights")):
        weights.unlink() if content is None else weights.write_bytes(content)
        with pytest.raises(UserError, match=said) as refusal:
            create(name, pretrained=True)
        assert f"the folder {tmp_path} " in refusal.value.happened
        assert "cache" not in str(refusal.value) and "HF_ENDPOINT" not in str(refusal.value)
        assert content is None or ": model.safetensors is damaged (" in refusal.value.happened
    with pytest.raises(UserError, match="hf:nobody/nothing are not in the cache"):
        create("hf:nobody/nothing")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'warmstart\[hf\]'"):
        split_name("hf:facebook/dinov2-small")
