from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.metadata import expand
from warmstart.models.weights import read_weights

TEN = tuple("0123456789")
NOTHING: dict[str, Any] = dict.fromkeys(("mean", "std", "image_size", "crop_pct"))


def _save(built: BuiltModel, path: Path) -> Path:
    save_file(built.module.state_dict(), path, metadata_for(built))
    return path


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    settings = ModelConfig(name="resnet10t", weights="none")
    before = torch.get_rng_state()
    one, two, other = (build(settings, NOTHING, ("a", "b"), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    states = [built.module.state_dict() for built in (one, two, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["conv1.0.weight"], states[2]["conv1.0.weight"])
    assert one.name == "timm:resnet10t" and one.source == {"kind": "random", "path": None, "sha256": None}
    assert one.head_change.kind == "new" and one.blocks[-1].name == "head" and one.channels_last


@pytest.mark.parametrize("name", ["builtin:fashion_cnn", "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_what_is_saved_describes_itself(name: str, tmp_path: Path) -> None:
    overrides = NOTHING | {"image_size": (32, 48), "crop_pct": 0.9}
    built = build(ModelConfig(name=name, weights="none"), overrides, ("cat", "Straße", "犬"), seed=0)
    file = _save(built, tmp_path / "model.safetensors")
    again = build(ModelConfig(weights=str(file)), {}, built.classes, seed=7)
    assert (
        again.name == name and again.preprocessing == built.preprocessing and again.classes == built.classes
    )
    assert again.head_change.kind == "kept" and again.blocks == built.blocks
    state = built.module.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.module.state_dict().items())
    read = read_weights(file)
    assert again.source == {"kind": "file", "path": str(file), "sha256": read.sha256}
    written = expand(metadata_for(built))
    assert written == expand(metadata_for(again))
    assert set(written) == {"warmstart.name", "classes", "mean", "std", "image_size", "crop_pct"}


def test_preprocessing_precedence(tmp_path: Path) -> None:
    built = build(ModelConfig(name="resnet10t", weights="none"), {}, ("a", "b"), seed=0)
    file = tmp_path / "m.safetensors"
    save_file(
        built.module.state_dict(), file, {"arch": "resnet10t", "mean": "[0.1, 0.2, 0.3]", "image_size": "64"}
    )
    found = build(
        ModelConfig(weights=str(file)), NOTHING | {"image_size": (32, 32), "std": (0.5,)}, ("a", "b"), 0
    )
    assert found.preprocessing.image_size == (32, 32)  # given
    assert found.preprocessing.std == (0.5, 0.5, 0.5)  # given once for every channel
    assert found.preprocessing.mean == (0.1, 0.2, 0.3)  # from the file
    assert found.preprocessing.crop_pct == built.preprocessing.crop_pct  # the model's own
    with pytest.raises(UserError, match="mean has 2 values, but timm:resnet10t takes 3 channel"):
        build(ModelConfig(weights=str(file)), NOTHING | {"mean": (0.5, 0.5)}, ("a", "b"), 0)


def test_names_of_models() -> None:
    with pytest.raises(UserError, match="no model named"):
        build(ModelConfig(), {}, TEN, 0)
    with pytest.raises(UserError, match="--weights FILE, or --weights none"):
        build(ModelConfig(name="fashion_cnn"), {}, TEN, 0)


def test_a_file_that_contradicts_or_does_not_say_its_model(tmp_path: Path) -> None:
    built = build(ModelConfig(name="fashion_cnn", weights="none"), {}, TEN, seed=0)
    torch.save(built.module.state_dict(), tmp_path / "bare.pt")
    assert build(ModelConfig(weights=str(tmp_path / "bare.pt")), {}, TEN, 0).name == "builtin:fashion_cnn"
    with pytest.raises(
        UserError, match=r"--model timm:resnet18, but .* holds weights of builtin:fashion_cnn"
    ):
        build(ModelConfig(name="timm:resnet18", weights=str(tmp_path / "bare.pt")), {}, TEN, 0)
    torch.save({"w": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="does not say which model its 1 tensors belong to"):
        build(ModelConfig(weights=str(tmp_path / "odd.pt")), {}, TEN, 0)


def test_class_names_must_count_the_outputs(tmp_path: Path) -> None:
    built = build(ModelConfig(name="fashion_cnn", weights="none"), {}, TEN, seed=0)
    save_file(built.module.state_dict(), tmp_path / "m.safetensors", {"classes": '["a", "b"]'})
    with pytest.raises(UserError, match="names 2 classes, but its classifier has 10 outputs"):
        build(ModelConfig(weights=str(tmp_path / "m.safetensors")), {}, TEN, 0)


def test_a_file_without_classifier(tmp_path: Path) -> None:
    built = build(ModelConfig(name="resnet10t", weights="none"), {}, ("a", "b"), seed=0)
    state = {key: tensor for key, tensor in built.module.state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "backbone.pt")
    settings = ModelConfig(name="resnet10t", weights=str(tmp_path / "backbone.pt"))
    one, two = (build(settings, {}, ("x", "y", "z"), seed=3) for _ in range(2))
    assert one.head_change.kind == "new" and one.head_change.reason == "the file holds no classifier"
    assert torch.equal(one.module.get_submodule("fc").weight, two.module.get_submodule("fc").weight)
    assert one.module.get_submodule("fc").out_features == 3


def test_grey_weights_make_a_grey_model(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet10t", in_chans=1, num_classes=2).state_dict(), tmp_path / "grey.pt")
    built = build(ModelConfig(name="resnet10t", weights=str(tmp_path / "grey.pt")), {}, ("a", "b"), 0)
    assert built.preprocessing.num_channels == 1
    assert "2 outputs for 2 classes" in built.head_change.reason


def test_transformers_move_to_another_size(tmp_path: Path) -> None:
    settings = ModelConfig(name="vit_tiny_patch16_224", weights="none")
    built = build(settings, {"image_size": (64, 64)}, ("a", "b"), seed=0)
    file = _save(built, tmp_path / "vit.safetensors")
    moved = build(ModelConfig(weights=str(file)), {"image_size": (32, 48)}, ("a", "b"), seed=0)
    assert moved.preprocessing.image_size == (32, 48)
    assert moved.module.eval()(torch.zeros(1, 3, 32, 48)).shape == (1, 2)
    assert torch.equal(moved.module.get_submodule("head").weight, built.module.get_submodule("head").weight)
    built = build(ModelConfig(name="test_vit", weights="none"), {"image_size": (64, 64)}, ("a", "b"), seed=0)
    file = _save(built, tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="cannot run on images of 40x40 pixels") as caught:
        build(ModelConfig(weights=str(file)), {"image_size": (40, 40)}, ("a", "b"), seed=0)
    assert caught.value.expected.endswith("nearest that work: 32x32, 48x48")
    built = build(
        ModelConfig(name="mixer_s32_224", weights="none"), {"image_size": (64, 64)}, ("a", "b"), seed=0
    )
    file = _save(built, tmp_path / "mixer.safetensors")
    with pytest.raises(UserError, match="was saved for images of 64x64 pixels and cannot be moved to 32x32"):
        build(ModelConfig(weights=str(file)), {"image_size": (32, 32)}, ("a", "b"), seed=0)


def test_dropout() -> None:
    settings = ModelConfig(name="fashion_cnn", weights="none", dropout=0.2)
    assert build(settings, {}, TEN, 0).module.get_submodule("dropout").p == 0.2
    settings = ModelConfig(name="mobilenetv3_small_100", weights="none", dropout=0.0)
    assert build(settings, {}, TEN, 0).module.drop_rate == 0.0


@pytest.mark.shared
def test_the_documents_file(fashion_file: Path) -> None:
    built = build(ModelConfig(weights=str(fashion_file)), NOTHING, TEN, seed=0)
    assert built.name == "builtin:fashion_cnn" and built.head == "fc2"
    assert built.head_change.kind == "kept"
    assert built.head_change.reason == "the weights name no classes; 10 outputs for 10 classes"


@pytest.mark.shared
def test_cat_and_dog_rows_of_the_cifar_file_are_kept(cifar_file: Path) -> None:
    built = build(ModelConfig(weights=str(cifar_file)), NOTHING, ("cat", "dog"), seed=0)
    source = read_weights(cifar_file)
    assert built.name == "timm:mobilenetv3_small_100" and built.preprocessing.image_size == (64, 64)
    assert built.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert built.head_change.kind == "kept" and built.head_change.kept == ("cat", "dog")
    for key in ("weight", "bias"):
        old, new = source.state[f"classifier.{key}"], built.module.get_parameter(f"classifier.{key}")
        assert torch.equal(new, old[[3, 5]])
    mixed = build(ModelConfig(weights=str(cifar_file)), NOTHING, ("cat", "llama"), seed=0).head_change
    assert (mixed.kind, mixed.kept, mixed.new) == ("mixed", ("cat",), ("llama",))


def test_equal_models_give_equal_files() -> None:
    """With several entries of metadata, safetensors orders them at random."""
    from safetensors.torch import save

    built = build(ModelConfig(name="builtin:fashion_cnn", weights="none"), {}, ("a", "b"), seed=0)
    files = {save(built.module.state_dict(), metadata_for(built)) for _ in range(8)}
    assert len(files) == 1


def test_a_zoo_model_takes_as_many_channels_as_means() -> None:
    given = NOTHING | {"mean": (0.5,) * 5, "std": (0.2,) * 5, "image_size": (32, 32)}
    built = build(ModelConfig(name="timm:resnet10t", weights="none"), given, ("a", "b"), 0)
    assert built.preprocessing.num_channels == 5
    assert built.module(torch.zeros(2, 5, 32, 32)).shape == (2, 2)
    with pytest.raises(UserError, match="mean has 5 values, but builtin:fashion_cnn takes 1 channel"):
        build(ModelConfig(name="fashion_cnn", weights="none"), given, ("a", "b"), 0)
