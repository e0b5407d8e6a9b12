"""torchvision's families: blocks on the meta device, two small ones for real."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.blocks import find_blocks
from warmstart.models.build import build, metadata_for
from warmstart.models.heads import fit_head
from warmstart.models.zoo import create, outline, split_name

# Name -> path of the classifier, and the first, second and last block before the head.
FAMILIES = {
    "resnet18": ("fc", "conv1", "layer1", "layer4"),
    "alexnet": ("classifier.6", "features.0", "features.3", "classifier"),
    "vgg11_bn": ("classifier.6", "features.0", "features.4", "classifier"),
    "mobilenet_v2": ("classifier.1", "features.0", "features.1", "features.18"),
    "mobilenet_v3_small": ("classifier.3", "features.0", "features.1", "classifier"),
    "efficientnet_b0": ("classifier.1", "features.0", "features.1", "features.8"),
    "vit_b_32": ("heads.head", "conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in (0, 11))),
    "swin_t": ("head", "features.0", "features.1", "features.7"),
    "densenet121": ("classifier", "features.conv0", "features.denseblock1", "features.denseblock4"),
    "convnext_tiny": ("classifier.2", "features.0", "features.1", "features.7"),
    "squeezenet1_1": ("classifier.1", "features.0", "features.3", "features.12"),
    "shufflenet_v2_x0_5": ("fc", "conv1", "stage2", "conv5"),
    "mnasnet0_5": ("classifier.1", "layers.0", "layers.3", "layers.14"),
    "regnet_y_400mf": ("fc", "stem", "trunk_output.block1", "trunk_output.block4"),
    "maxvit_t": ("classifier.5", "stem", "blocks.0", "classifier"),
    "googlenet": ("fc", "conv1", "conv2", "inception5b"),
    "inception_v3": ("fc", "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Mixed_7c"),
}
WITH_DROPOUT = {"alexnet", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"}
WITH_DROPOUT |= {"squeezenet1_1", "mnasnet0_5", "googlenet", "inception_v3"}


def _device(name: str) -> str:
    return "cpu" if name.startswith("regnet") else "meta"  # RegNets compute their widths with tensors


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    head, first, second, last = FAMILIES[name]
    with torch.device(_device(name)):
        made = create(f"torchvision:{name}", num_classes=3)
    module = made.module
    assert made.head == head == outline(f"torchvision:{name}").head
    assert made.licence is None and made.classes is None and made.origin is None
    blocks = find_blocks(module, head)
    names = [block.name for block in blocks]
    assert (names[0], names[1], names[-2], names[-1]) == (first, second, last, "head")
    assert sorted(chain(*(b.parameters for b in blocks))) == sorted(n for n, _ in module.named_parameters())
    assert sorted(chain(*(b.buffers for b in blocks))) == sorted(n for n, _ in module.named_buffers())
    order = {key: at for at, (key, _) in enumerate(module.named_parameters())}
    assert set(blocks[-1].parameters) == {n for n in order if n.startswith(f"{head}.")}
    depths = [min(order[p] for p in block.parameters if "token" not in p) for block in blocks]
    assert depths[1:] == sorted(depths[1:])
    for path in blocks[0].modules:  # freeze the first block
        module.get_submodule(path).requires_grad_(False)
    frozen = {key for key, p in module.named_parameters() if not p.requires_grad}
    assert frozen and frozen <= set(blocks[0].parameters)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout(name: str) -> None:
    with torch.device(_device(name)):
        if name in WITH_DROPOUT:
            module = create(f"torchvision:{name}", num_classes=3, dropout=0.123).module
            assert 0.123 in {m.p for m in module.modules() if isinstance(m, nn.Dropout)}
        else:
            with pytest.raises(UserError, match=f"torchvision:{name} has no dropout before its head"):
                create(f"torchvision:{name}", num_classes=3, dropout=0.123)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_new_head_works(name: str) -> None:
    made = create(f"torchvision:{name}", num_classes=3, image_size=(64, 64))
    change = fit_head(made.module, made.head, ("a", "b", "c"), ("c", "x"), seed=0)
    assert (change.kept, change.new) == (("c",), ("x",))
    assert made.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_preprocessing_is_that_of_the_default_weights() -> None:
    with torch.device("meta"):
        one, two = (create(f"torchvision:{n}").preprocessing for n in ("resnet50", "googlenet"))
    assert one.image_size == (224, 224) and one.crop_pct == 224 / 232
    assert one.mean == (0.485, 0.456, 0.406) and one.std == (0.229, 0.224, 0.225)
    assert two.mean == two.std == (0.5, 0.5, 0.5)  # what its transform_input computes


def test_sizes_and_channels() -> None:
    made = create("torchvision:vit_b_32", num_classes=2, image_size=(64, 64))
    assert made.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert (
        outline("torchvision:vit_b_32").fixed_size and outline("torchvision:resnet18").first_conv == "conv1"
    )
    with pytest.raises(UserError, match="takes square images, not 64x96"):
        create("torchvision:vit_b_32", image_size=(64, 96))
    with pytest.raises(UserError, match="do not fit images of 64x64 pixels"):
        create("torchvision:vit_b_32", pretrained=True, image_size=(64, 64))
    with pytest.raises(UserError, match="torchvision:vgg11 cannot run on images of 8x8 pixels"):
        create("torchvision:vgg11", image_size=(8, 8))
    with pytest.raises(UserError, match="takes 3 channels, not 1"):
        create("torchvision:resnet18", in_channels=1)


def test_names() -> None:
    with pytest.raises(UserError, match="2 models are called 'resnet18'") as caught:
        split_name("resnet18")
    assert caught.value.expected == "timm:resnet18 or torchvision:resnet18"
    with pytest.raises(UserError, match="Did you mean 'torchvision:mobilenet_v2'"):
        split_name("torchvision:mobilenetv2")
    with pytest.raises(UserError, match="unknown model 'torchvision:fasterrcnn_resnet50_fpn'"):
        split_name("torchvision:fasterrcnn_resnet50_fpn")  # detection


def test_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_name("torchvision:resnet50.IMAGENET1K_V1") == ("torchvision", "resnet50.IMAGENET1K_V1")
    assert split_name("regnet_y_16gf.IMAGENET1K_SWAG_E2E_V1")[0] == "torchvision"
    with pytest.raises(
        UserError, match=r"no weights 'IMAGENET1K_V3' of resnet50[\s\S]*Did you mean 'IMAGENET1K_V2'"
    ):
        split_name("torchvision:resnet50.IMAGENET1K_V3")
    with torch.device("meta"):
        one, two = (create(f"torchvision:resnet50.IMAGENET1K_V{n}").preprocessing.crop_pct for n in (1, 2))
        large = create("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    assert (one, two) == (224 / 256, 224 / 232)
    assert large.preprocessing.image_size == (384, 384)
    assert outline("torchvision:vit_b_16.IMAGENET1K_SWAG_E2E_V1").image_size == (384, 384)
    from torchvision import models

    source, asked = models.mobilenet_v2(weights=None), []
    enum = models.MobileNet_V2_Weights
    monkeypatch.setattr(
        enum, "get_state_dict", lambda weights, **_: asked.append(weights) or source.state_dict()
    )
    made = create("torchvision:mobilenet_v2.IMAGENET1K_V1", pretrained=True)
    assert asked == [enum.IMAGENET1K_V1] and made.origin == enum.IMAGENET1K_V1.url
    built = build(ModelConfig(name="torchvision:mobilenet_v2.IMAGENET1K_V1"), {}, ("a", "b"), seed=0)
    assert built.name == "torchvision:mobilenet_v2.IMAGENET1K_V1" and asked[-1] == enum.IMAGENET1K_V1


def test_offline_names_the_cache_of_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError) as caught:
        create("torchvision:squeezenet1_1", pretrained=True)
    for part in (
        f"torchvision:squeezenet1_1 are not in the cache {tmp_path / 'hub' / 'checkpoints'}",
        "Name or service not known",
        "TORCH_HOME",
        "--weights FILE",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "googlenet", "inception_v3"])
def test_pretrained_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache that holds what torchvision would download: the same logits as torchvision's own."""
    from torchvision import models

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    source = models.get_model(name, weights=None, **options)
    weights = models.get_model_weights(name).DEFAULT
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: source.state_dict())
    made = create(f"torchvision:{name}", pretrained=True)
    assert made.classes is not None and made.classes[0] == "tench" and len(made.classes) == 1000
    assert made.origin == weights.url and made.licence is None
    reference = models.get_model(name, weights=weights).eval()
    assert list(made.module.state_dict()) == list(create(f"torchvision:{name}").module.state_dict())
    pixels = torch.rand(2, 3, 96, 96)
    own = made.preprocessing
    mine = (pixels - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    theirs = weights.transforms()
    other = (pixels - torch.tensor(theirs.mean)[:, None, None]) / torch.tensor(theirs.std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(made.module.eval()(mine), reference(other), rtol=1e-4, atol=1e-5)


def test_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision import models

    source = models.shufflenet_v2_x0_5(num_classes=2)
    torch.save({"model": source.state_dict(), "epoch": 0}, tmp_path / "m.pth")
    settings = ModelConfig(name="torchvision:shufflenet_v2_x0_5", weights=str(tmp_path / "m.pth"))
    built = build(settings, {"image_size": (64, 64)}, ("a", "b"), seed=0)
    assert torch.equal(built.module.get_submodule("fc").weight, source.fc.weight)
    save_file(built.module.state_dict(), tmp_path / "own.safetensors", metadata_for(built))
    again = build(ModelConfig(weights=str(tmp_path / "own.safetensors")), {}, ("a", "b"), seed=1)
    assert again.name == "torchvision:shufflenet_v2_x0_5" and again.blocks == built.blocks


def test_a_file_with_auxiliary_classifiers(tmp_path: Path) -> None:
    from torchvision import models

    source = models.googlenet(num_classes=2, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "m.pth")
    settings = ModelConfig(name="torchvision:googlenet", weights=str(tmp_path / "m.pth"))
    built = build(settings, {}, ("a", "b"), seed=0)
    assert torch.equal(built.module.get_submodule("fc").weight, source.fc.weight)
    assert built.notes == ("left out 20 tensors of auxiliary classifiers",)
