"""torchvision's segmentation models: plain tensors out, unchanged names, no auxiliary classifier."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.blocks import find_blocks
from warmstart.models.build import build
from warmstart.models.zoo import create, outline, split_name

NAME = "torchvision:deeplabv3_mobilenet_v3_large"


def test_names() -> None:
    assert split_name("deeplabv3_resnet50") == ("torchvision", "deeplabv3_resnet50")
    tagged = "torchvision:fcn_resnet50.COCO_WITH_VOC_LABELS_V1"
    assert split_name(tagged)[1] == "fcn_resnet50.COCO_WITH_VOC_LABELS_V1"
    assert outline(tagged).segments and not outline("torchvision:resnet18").segments
    with pytest.raises(UserError, match="Did you mean 'torchvision:deeplabv3_resnet50'"):
        split_name("torchvision:deeplab_resnet50")


def test_it_gives_a_tensor_and_loads_torchvisions_own_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    built = build(ModelConfig(name=NAME, weights=str(tmp_path / "theirs.pth")), {}, None, seed=0)
    assert len(built.classes) == 21 and built.segments and built.channels_last
    assert "left out 8 tensors of auxiliary classifiers" in built.notes
    own = {key for key in theirs.state_dict() if not key.startswith("aux_classifier.")}
    assert set(built.module.state_dict()) == own
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        wanted, found = theirs(images)["out"], copy.deepcopy(built.module.eval())(images)
    assert torch.equal(found, wanted) and found.shape == (2, 21, 64, 96)


def test_defaults_blocks_and_dropout() -> None:
    with torch.device("meta"):
        made = create(NAME, num_classes=3, dropout=0.3)
    assert (made.preprocessing.image_size, made.preprocessing.crop_pct) == ((520, 520), 1.0)
    assert made.module.get_submodule("classifier.0.project.3").p == 0.3
    names = [block.name for block in find_blocks(made.module, made.head)]
    assert names == [*(f"backbone.{i}" for i in range(17)), "classifier", "head"]


def test_two_heads_and_no_hub() -> None:
    with pytest.raises(
        UserError, match=r"not one classifier but 2 whose outputs are added \(low_classifier, high"
    ):
        create("torchvision:lraspp_mobilenet_v3_large")
    with pytest.raises(UserError, match=f"the pretrained weights of {NAME} are not in the cache"):
        create(NAME, pretrained=True)
    with pytest.raises(UserError, match="takes 3 channels, not 1"):
        create(NAME, in_channels=1)
