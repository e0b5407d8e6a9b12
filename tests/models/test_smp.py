"""segmentation_models_pytorch behind the zoo's door: names, encoders, sizes, memory layout."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import build, metadata_for
from warmstart.models.zoo import create, outline, split_name

ARCHS = [kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values() if kind is not smp.DPT]
CLASSES = ("sky", "road", "car")
UNET = "smp:Unet/resnet18"


def test_names_in_the_packages_own_spelling() -> None:
    assert split_name("smp:unet/resnet18") == ("smp", "Unet/resnet18")
    assert split_name("smp:DEEPLABV3plus/tu-resnet18.a1_in1k") == ("smp", "DeepLabV3Plus/tu-resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smp:Unett/resnet18", r"no architecture 'Unett'[\s\S]*UPerNet, Segformer[\s\S]*Did you mean 'Unet'"),
        ("smp:DPT/tu-vit_tiny_patch16_224", "no architecture 'DPT'"),
        ("smp:Unet/resnet81", "no encoder 'resnet81'[\\s\\S]*Did you mean 'resnet18'"),
        ("smp:FPN/tu-resnet81", "no encoder 'tu-resnet81'[\\s\\S]*Did you mean 'tu-resnet18'"),
        ("smp:FPN/tu-resnet18.nobody", "no encoder 'tu-resnet18.nobody'"),
        ("smp:fpn", "smp:fpn names no encoder[\\s\\S]*--model smp:FPN/resnet34"),
    ],
)
def test_unknown_names_come_with_the_closest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_name(name)


@pytest.mark.parametrize("arch", ARCHS)
def test_architectures_compute_in_their_layout(arch: str) -> None:
    size = (128, 128) if arch == "PAN" else (64, 96)
    made = create(f"smp:{arch}/resnet18", num_classes=3, image_size=size)
    assert made.segments and made.head == outline(f"smp:{arch}/resnet18").head and made.channels_last
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        wanted = made.module.eval()(images)
        module = made.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = module(images.contiguous(memory_format=torch.channels_last))
    assert found.shape == (2, 3, *size)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    module.train()(images).sum().backward()


def test_preprocessing_is_the_encoders() -> None:
    found = create(UNET).preprocessing
    assert (found.image_size, found.crop_pct) == ((512, 512), 1.0)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert create("smp:Unet/xception").preprocessing.mean == (0.5,) * 3
    swin = create("smp:FPN/tu-swin_tiny_patch4_window7_224", num_classes=2, image_size=(64, 64))
    assert (
        swin.preprocessing.image_size == (64, 64)
        and outline("smp:FPN/tu-swin_tiny_patch4_window7_224").fixed_size
    )
    assert swin.module.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    grey = create(UNET, in_channels=1)
    assert grey.preprocessing.mean == (pytest.approx(0.449),)
    assert grey.module.eval()(torch.rand(1, 1, 32, 32)).shape == (1, 1, 32, 32)


def test_what_cannot_be_built_says_so() -> None:
    with pytest.raises(UserError, match="cannot build smp:Linknet/mit_b0: Encoder `mit_b0` is not supported"):
        create("smp:Linknet/mit_b0")
    with pytest.raises(UserError, match="cannot build smp:Unet/tu-vit_tiny_patch16_224: Unsupported"):
        create("smp:Unet/tu-vit_tiny_patch16_224")
    with pytest.raises(
        UserError, match=r"cannot run on images of 50x50 pixels[\s\S]*nearest that work: 64x64, 32x32"
    ):
        create("smp:MAnet/resnet18", image_size=(50, 50))
    with pytest.raises(UserError, match=f"{UNET} has no dropout before its head"):
        create(UNET, dropout=0.2)


@pytest.mark.parametrize("name", [UNET, "smp:Unet/tu-resnet18"])
def test_a_pretrained_encoder_needs_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=f"the pretrained weights of {name} are not in the cache") as caught:
        build(ModelConfig(name=name), {}, CLASSES, seed=0)
    assert "--weights none for random initialisation" in caught.value.fix
    with pytest.raises(UserError, match="smp:Unet/tu-convnext_atto_rms has no pretrained encoder"):
        create("smp:Unet/tu-convnext_atto_rms", pretrained=True)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "segmentation_models_pytorch":
            raise ImportError("No module named 'segmentation_models_pytorch'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'warmstart\[smp\]'"):
        split_name(UNET)


def test_saved_and_built_again(tmp_path: Path) -> None:
    built = build(ModelConfig(name="smp:unet/resnet18", weights="none"), {}, CLASSES, seed=0)
    assert built.name == UNET and built.segments
    state, file = built.module.state_dict(), tmp_path / "m.safetensors"
    save_file(state, file, metadata=metadata_for(built))
    again = build(ModelConfig(weights=str(file)), {}, None, seed=5)
    assert (again.name, again.classes, again.preprocessing) == (UNET, CLASSES, built.preprocessing)
    assert all(torch.equal(state[key], tensor) for key, tensor in again.module.state_dict().items())
    other = build(ModelConfig(weights=str(file)), {}, ("car", "tree"), seed=5)
    head, old = (m.module.get_submodule("segmentation_head.0") for m in (other, built))
    assert head.kernel_size == (3, 3) and torch.equal(head.weight[0], old.weight[2])
    assert head.weight[1].abs().max() <= 1 / (16 * 9) ** 0.5
    assert other.module.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    torch.save({"state_dict": {f"model.{key}": t for key, t in state.items()}}, tmp_path / "lightning.ckpt")
    plain = build(ModelConfig(name=UNET, weights=str(tmp_path / "lightning.ckpt")), {}, None, seed=5)
    assert torch.equal(plain.module.get_submodule("segmentation_head.0").weight, old.weight)


@pytest.mark.parametrize("name", [UNET, "torchvision:fcn_resnet50"])
def test_a_file_of_the_encoder_alone_starts_the_encoder(name: str, tmp_path: Path) -> None:
    """As an image classifier of torchvision is one."""
    arch = name.rpartition("/")[2].rpartition("_")[2]
    classifier = create(f"torchvision:{arch}", num_classes=7).module.state_dict()
    torch.save(classifier, tmp_path / "classifier.pth")
    file = str(tmp_path / "classifier.pth")
    built, twin = (build(ModelConfig(name=name, weights=file), {}, CLASSES, seed=0) for _ in range(2))
    state, prefix = built.module.state_dict(), outline(name).encoder
    assert prefix is not None
    encoder = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    assert all(torch.equal(classifier[key], tensor) for key, tensor in encoder.items()) and len(encoder) > 100
    assert any("tensors of the encoder; the decoder starts at random" in note for note in built.notes)
    assert "left out 2 tensors beside the encoder" in built.notes
    assert (built.head_change.kind, built.head_change.new) == ("new", CLASSES)
    assert all(torch.equal(state[key], tensor) for key, tensor in twin.module.state_dict().items())


def test_most_of_an_encoder_is_none(tmp_path: Path) -> None:
    """And a decoder's tensor beside it is not passed over either."""
    name = "torchvision:fcn_resnet50"
    classifier = create("torchvision:resnet50", num_classes=7).module.state_dict()
    whole = create(name, num_classes=7).module.state_dict()
    less = {key: tensor for key, tensor in classifier.items() if key != "layer4.1.conv2.weight"}
    more = {key: tensor for key, tensor in whole.items() if key != "classifier.0.weight"}
    for state in (less, more):
        torch.save(state, tmp_path / "m.pth")
        with pytest.raises(UserError, match=f"m.pth does not fit {name}"):
            build(ModelConfig(name=name, weights=str(tmp_path / "m.pth")), {}, CLASSES, seed=0)
