"""Values that are adapted, against what timm and torchvision compute themselves."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.models.fitting import image_size_in
from warmstart.models.zoo import outline

TWO = ("ant", "bee")


def loaded(state: dict[str, Tensor], name: str, folder: Path, **overrides: Any) -> BuiltModel:
    torch.save(state, folder / "m.pt")
    return build(ModelConfig(name=name, weights=str(folder / "m.pt")), overrides, TWO, seed=0)


@pytest.mark.parametrize("num_bands", [1, 3])
def test_stems_give_the_same_for_grey_pictures(num_bands: int, tmp_path: Path) -> None:
    """One channel shown three times is the picture that a grey stem, and the sum of a colour stem, sees."""
    from torchvision import models

    grey, colour = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64).repeat(1, 3, 1, 1)
    if num_bands == 1:
        source: Any = models.shufflenet_v2_x0_5(num_classes=2)
        source.conv1[0] = torch.nn.Conv2d(1, 24, 3, stride=2, padding=1, bias=False)
        built = loaded(source.state_dict(), "torchvision:shufflenet_v2_x0_5", tmp_path, image_size=(64, 64))
        assert built.preprocessing.num_channels == 3
        mine, theirs = colour, colour[:, :1]
    else:
        source = FashionCNN(2)
        source.conv1 = torch.nn.Conv2d(3, 64, 5, padding=2)
        built = loaded(source.state_dict(), "builtin:fashion_cnn", tmp_path)
        mine, theirs = grey, grey.repeat(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(built.module.eval()(mine), source.eval()(theirs), rtol=1e-4, atol=1e-5)


def test_one_mean_stands_for_every_channel_and_three_make_a_colour_model(tmp_path: Path) -> None:
    import timm

    grey = timm.create_model("test_resnet", in_chans=1, num_classes=2).state_dict()
    one, three = ({"mean": (0.5,) * n, "std": (0.25,) * n} for n in (1, 3))
    assert loaded(grey, "timm:test_resnet", tmp_path, **one).preprocessing.num_channels == 1
    assert loaded(grey, "timm:test_resnet", tmp_path, **three).preprocessing.num_channels == 3
    colour = timm.create_model("test_resnet", num_classes=2).state_dict()
    assert loaded(colour, "timm:test_resnet", tmp_path, **one).preprocessing.mean == (0.5, 0.5, 0.5)


def test_grids_are_found_and_moved_as_timm_does_it(tmp_path: Path) -> None:
    import timm
    from timm.layers import resample_abs_pos_embed

    source: Any = timm.create_model("test_vit", img_size=64, num_classes=2).eval()
    state = source.state_dict()
    known = outline("timm:test_vit")
    assert image_size_in(state, known) == (64, 64) and known.image_size == (160, 160)
    assert image_size_in({}, known) is None
    assert image_size_in({"pos_embed": torch.zeros(1, 1 + 7, 64)}, known) is None  # no square
    same = loaded(state, "timm:test_vit", tmp_path)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(same.module.eval()(pixels), source(pixels)) and same.preprocessing.image_size == (
            64,
            64,
        )
    moved = loaded(state, "timm:test_vit", tmp_path, image_size=(96, 96))
    wanted = resample_abs_pos_embed(state["pos_embed"], new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(moved.module.get_parameter("pos_embed"), wanted)


def test_torchvisions_grid_is_moved_as_torchvision_does_it(tmp_path: Path) -> None:
    from torchvision import models
    from torchvision.models.vision_transformer import interpolate_embeddings

    state = models.vit_b_32(num_classes=2, image_size=64).state_dict()
    key = "encoder.pos_embedding"
    torch.nn.init.normal_(state[key])
    built = loaded(state, "torchvision:vit_b_32", tmp_path, image_size=(96, 96))
    wanted = interpolate_embeddings(96, 32, OrderedDict({key: state[key]}))[key]
    torch.testing.assert_close(built.module.get_parameter(key), wanted)
    assert built.preprocessing.image_size == (96, 96)
    with pytest.raises(UserError, match="takes square images, not 96x64"):
        loaded(state, "torchvision:vit_b_32", tmp_path, image_size=(96, 64))


def test_old_names_and_relative_positions_as_timm_converts_them(tmp_path: Path) -> None:
    import timm

    source: Any = timm.create_model("convnext_atto", num_classes=2).eval()
    old = {  # as ConvNeXt's authors wrote it
        key.replace("stem.", "downsample_layers.0.")
        .replace("conv_dw.", "dwconv.")
        .replace("mlp.fc1.", "pwconv1.")
        .replace("mlp.fc2.", "pwconv2.")
        .replace("head.norm.", "norm.")
        .replace("head.fc.", "head."): tensor
        for key, tensor in source.state_dict().items()
    }
    old = {re.sub(r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", k): t for k, t in old.items()}
    old = {re.sub(r"(stages\.\d+)\.blocks\.", r"\1.", k): t for k, t in old.items()}
    built = loaded(old, "timm:convnext_atto", tmp_path)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(built.module.eval()(pixels), source(pixels))
    assert any(note.startswith("timm translated the names of ") for note in built.notes)
    name = "swin_tiny_patch4_window7_224"
    swin = timm.create_model(name, num_classes=2).state_dict()
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    swin = {
        k: torch.zeros((2 * 6 - 1) ** 2, t.shape[1]) if k.endswith("bias_table") else t
        for k, t in swin.items()
    }
    built = loaded(swin, f"timm:{name}", tmp_path)
    assert any(note.startswith("resampled layers.0.blocks.0.attn.relative") for note in built.notes)
    assert built.module.get_parameter(table).shape == (169, 3)
