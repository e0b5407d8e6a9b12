from __future__ import annotations

import builtins
from importlib.metadata import version
from typing import Any

import pytest
import torch

from warmstart.errors import UserError
from warmstart.models.builtin import BUILTINS
from warmstart.models.created import Outline
from warmstart.models.zoo import create, outline, recognise, split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18", ("timm", "resnet18")),
        ("timm:resnet18.a1_in1k", ("timm", "resnet18.a1_in1k")),
        ("resnet10t", ("timm", "resnet10t")),
        ("mobilenet_v2", ("torchvision", "mobilenet_v2")),
        ("torchvision:resnet18", ("torchvision", "resnet18")),
        ("builtin:fashion_cnn", ("builtin", "fashion_cnn")),
        ("fashion_cnn", ("builtin", "fashion_cnn")),
    ],
)
def test_names(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"unknown model 'timm:resnet81'[\s\S]*Did you mean 'timm:resnet\d+'"),
        ("timm:resnet18.a1_in1", r"Did you mean 'timm:resnet18.a1_in1k'"),
        ("fashion_cn", "Did you mean 'fashion_cnn'"),
        ("builtin:fashioncnn", "Did you mean 'builtin:fashion_cnn'"),
        ("tim:resnet18", "unknown model zoo 'tim'[\\s\\S]*Did you mean 'timm'"),
    ],
)
def test_unknown_names_come_with_the_closest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_name(name)


def test_an_ambiguous_name_asks_for_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTINS, "resnet18", BUILTINS["fashion_cnn"])
    with pytest.raises(UserError, match="3 models are called 'resnet18'"):
        split_name("resnet18")


def test_builtin_defaults() -> None:
    made = create("fashion_cnn", num_classes=4, dropout=0.1)
    assert made.head == "fc2" and not made.channels_last and made.licence is None
    assert made.preprocessing.image_size == (28, 28)
    assert (made.preprocessing.mean, made.preprocessing.std, made.preprocessing.crop_pct) == (
        (0.1307,),
        (0.3081,),
        1.0,
    )
    assert made.module.get_submodule("dropout").p == 0.1
    assert made.module(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


def test_builtin_has_nothing_to_download_and_one_channel() -> None:
    with pytest.raises(UserError, match="--weights FILE, or --weights none"):
        create("fashion_cnn", pretrained=True)
    with pytest.raises(UserError, match="takes 1 channel, not 3"):
        create("fashion_cnn", in_channels=3)


def test_timm_defaults() -> None:
    made = create("timm:mobilenetv3_small_100", num_classes=4, dropout=0.5)
    assert made.head == "classifier" and made.channels_last and made.classes is None and made.licence is None
    assert made.preprocessing.image_size == (224, 224)
    assert made.preprocessing.mean == (0.485, 0.456, 0.406)
    assert made.preprocessing.crop_pct == 0.875
    assert made.module.drop_rate == 0.5
    assert made.module.get_submodule("classifier").out_features == 4


def test_grey_stem_has_grey_statistics() -> None:
    made = create("timm:resnet10t", num_classes=2, in_channels=1)
    assert made.preprocessing.mean == pytest.approx((0.449,), abs=1e-3)
    assert made.module.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 2)


def test_transformers_are_built_for_the_image_size() -> None:
    made = create("timm:vit_tiny_patch16_224", num_classes=2, image_size=(48, 64))
    assert made.preprocessing.image_size == (48, 64) and not made.channels_last
    assert made.module.eval()(torch.zeros(1, 3, 48, 64)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("fashion_cnn", (4, 4), "8x8"),
        ("timm:vit_tiny_patch16_224", (8, 8), "16x16"),
        ("timm:inception_v3", (64, 64), "80x80"),
    ],
)
def test_impossible_sizes_name_the_nearest_that_works(name: str, size: tuple[int, int], nearest: str) -> None:
    with pytest.raises(
        UserError, match=f"images of {size[0]}x{size[1]} pixels[\\s\\S]*the nearest that work: {nearest}"
    ):
        create(name, num_classes=2, image_size=size)


def test_checking_a_size_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(1)
    plain = create("fashion_cnn").module
    torch.manual_seed(1)
    checked = create("fashion_cnn", image_size=(32, 32)).module
    assert torch.equal(plain.get_submodule("fc1").weight, checked.get_submodule("fc1").weight)


def test_dropout_that_would_do_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, drop_rate=None, **options: real(name, **options))
    with pytest.raises(UserError, match=r"timm:resnet10t has no dropout before its head, so --dropout 0.2"):
        create("timm:resnet10t", dropout=0.2)


def test_two_classifiers_are_refused() -> None:
    with pytest.raises(UserError, match="not one linear classifier but 2 classifiers"):
        outline("timm:deit_tiny_distilled_patch16_224")


def test_outline() -> None:
    found = outline("timm:resnet18")
    assert found == Outline("fc", "conv1", False, found.shapes, (224, 224))
    assert len(found.shapes) == 122 and found.shapes["fc.weight"] == (2, 512)
    assert found.stem_shape == (64, 3, 7, 7)
    assert outline("timm:tresnet_m").first_conv is None  # its stem folds pixels into 48 channels
    assert outline("vit_tiny_patch16_224").fixed_size
    assert outline("fashion_cnn").head == "fc2"


def test_offline_names_cache_mirror_and_the_ways_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(UserError) as caught:
        create("timm:resnet10t", pretrained=True)
    for part in (str(tmp_path / "hub"), "HF_ENDPOINT", "--weights FILE", "--weights none", "timm:resnet10t"):
        assert part in str(caught.value)


def test_pretrained_brings_licence_classes_and_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: real(name, **options))
    made = create("timm:resnet10t", pretrained=True)
    assert made.licence == "apache-2.0" and made.origin == "timm/resnet10t.c3_in1k"
    assert made.classes is not None and len(made.classes) == 1000 and made.classes[0] == "n01440764"


def test_a_model_without_pretrained_weights() -> None:
    with pytest.raises(UserError, match="no pretrained weights for coatnet_0_224"):
        create("timm:coatnet_0_224", pretrained=True)


@pytest.mark.parametrize("error", [RuntimeError, ImportError])
def test_torchvision_of_another_torch(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "timm":
            raise error("operator torchvision::nms does not exist")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(UserError) as caught:
        split_name("timm:resnet18")
    text = str(caught.value)
    assert f"torch {version('torch')} and torchvision {version('torchvision')}" in text
    assert "pip install --force-reinstall torch torchvision" in text
    assert "--index-url https://download.pytorch.org/whl/cpu" in text


def test_recognise() -> None:
    shapes = {key: tuple(t.shape) for key, t in create("fashion_cnn", 3).module.state_dict().items()}
    assert recognise(shapes, shapes) == "builtin:fashion_cnn"
    assert recognise(shapes, shapes | {"conv1.weight": (64, 3, 5, 5)}) is None
    assert recognise(["fc2.weight"], {"fc2.weight": (10, 256)}) is None
