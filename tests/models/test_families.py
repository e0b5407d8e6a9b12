"""What every plan, freezing, new head and dropout rely on, over the families of all zoos.

Built on the meta device, which costs no memory and no arithmetic; its forward passes run the models' code all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import AdaptConfig, OptimConfig
from warmstart.errors import UserError
from warmstart.models.blocks import find_blocks
from warmstart.models.heads import fit_head
from warmstart.models.zoo import create, outline

TIMM = """resnet10t resnext50_32x4d seresnet18 resnetv2_50 regnetx_002 regnety_002 densenet121
    vgg11 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 efficientnet_lite0 tf_efficientnetv2_b0
    ghostnet_050 mnasnet_small lcnet_035 convnext_atto convnextv2_atto nf_resnet26 eca_nfnet_l0
    vit_tiny_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 eva02_tiny_patch14_224
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 maxvit_pico_rw_256 coatnet_pico_rw_224 mixer_s32_224
    poolformer_s12 caformer_s18 edgenext_xx_small fastvit_t8 mobilevit_xxs mobilevitv2_050
    tiny_vit_5m_224 cait_xxs24_224 xcit_nano_12_p16_224 hrnet_w18_small dla46_c inception_v3 repvgg_a0
    rdnet_tiny pit_ti_224 pvt_v2_b0 davit_tiny hiera_tiny_224 starnet_s1 efficientvit_b0 efficientvit_m0 selecsls42
    samvit_base_patch16_224 cspresnet50 hgnetv2_b0 vovnet39a"""
TORCHVISION = """alexnet convnext_tiny efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_small regnet_x_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t
    vgg11_bn vit_b_32"""
WITHOUT_DROPOUT = """convnext_tiny maxvit_t regnet_x_400mf resnet18 shufflenet_v2_x0_5 swin_t swin_v2_t
    vit_b_32"""
SEGMENTERS = """builtin:microsegformer builtin:microsegformer_nolmsa
    torchvision:deeplabv3_mobilenet_v3_large torchvision:deeplabv3_resnet50 torchvision:fcn_resnet50
    smp:Unet/resnet18 smp:UnetPlusPlus/mobilenet_v2 smp:MAnet/vgg11_bn smp:Linknet/densenet121
    smp:FPN/mit_b0 smp:PSPNet/timm-skresnet18 smp:DeepLabV3/se_resnet50 smp:DeepLabV3Plus/efficientnet-b0
    smp:PAN/mobileone_s0 smp:UPerNet/tu-convnext_atto smp:Segformer/tu-swin_tiny_patch4_window7_224
    smp:Unet/tu-mobilenetv3_small_100 smp:FPN/xception smp:Unet/inceptionv4 smp:Unet/dpn68"""
WITH_DROPOUT = ("builtin:", "torchvision:", "smp:FPN", "smp:PSPNet", "smp:DeepLab")
NO_META = {"torchvision:regnet_x_400mf", "smp:FPN/mit_b0"}  # computes its widths with tensors, by value
TWO_HEADS = (
    "deit_tiny_distilled_patch16_224",
    "levit_128s",
    "efficientformer_l1",
    "crossvit_tiny_240",
    "volo_d1_224",
    "repvit_m0_9",
)
RATE = 0.123
DROPOUTS: tuple[Callable[..., Tensor], ...] = (functional.dropout, functional.dropout2d)


class Watch(TorchFunctionMode):
    """Notes when each parameter is first computed with, and at which rates dropout is really applied."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.first_use: dict[str, int] = {}
        self.rates: set[float] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") != "__get__":  # asking for a shape is no computation
            for leaf in tree_leaves((args, kwargs)):
                if id(leaf) in self.names:
                    self.first_use.setdefault(self.names[id(leaf)], len(self.first_use))
        if function in DROPOUTS:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            if given.get("training", True):
                self.rates.add(given["p"])
        return function(*args, **kwargs)


NAMES = [*(f"timm:{name}" for name in TIMM.split()), *(f"torchvision:{name}" for name in TORCHVISION.split())]
NAMES += SEGMENTERS.split()
# Encoders keep a last convolution that serves classification; PSPNet stops after the third stage.
UNUSED = {
    "smp:DeepLabV3Plus/efficientnet-b0": ("encoder._conv_head", "encoder._bn1"),
    "smp:PSPNet/timm-skresnet18": ("encoder.layer3", "encoder.layer4"),
}


@pytest.mark.parametrize("name", NAMES)
def test_family(name: str) -> None:
    with torch.device("cpu" if name in NO_META else "meta"):
        is_segmenter = name in SEGMENTERS.split()
        has_dropout = name not in {f"torchvision:{n}" for n in WITHOUT_DROPOUT.split()}
        if is_segmenter:
            has_dropout = name.startswith(WITH_DROPOUT)
        if not has_dropout:
            with pytest.raises(UserError, match=f"{name} has no dropout before its head"):
                create(name, 5, dropout=RATE)
        made = create(name, 5, dropout=RATE if has_dropout else None)
        module, blocks = made.module, find_blocks(made.module, made.head)

        tensors = [n for n, _ in chain(module.named_parameters(), module.named_buffers())]
        assert sorted(chain(*(b.parameters + b.buffers for b in blocks))) == sorted(tensors)
        assert len({b.name for b in blocks}) == len(blocks) >= 5
        assert {n.removeprefix(f"{made.head}.") for n in blocks[-1].parameters} <= {"weight", "bias"}
        assert blocks[-1].name == "head" and not blocks[-1].buffers

        change = fit_head(module, made.head, None, ["ant", "bee", "cat"], seed=0)
        assert change.new == ("ant", "bee", "cat")
        assert made.segments == is_segmenter == outline(name).segments
        height, width = (64, 64) if name in NO_META and is_segmenter else made.preprocessing.image_size
        images = torch.zeros(2, made.preprocessing.num_channels, height, width)
        with Watch(module) as watch:
            outputs = module.train()(images)
        assert outputs.shape == ((2, 3, height, width) if is_segmenter else (2, 3))
        assert (RATE in watch.rates) == has_dropout

        # Class tokens and position tables at the root belong to the stem, wherever they are read.
        for parameter in watch.names.values():
            assert (parameter in watch.first_use) != parameter.startswith(UNUSED.get(name, ("none",)))
        spans = [
            [watch.first_use.get(n, -1) for n in b.parameters if "." in n or b.name == "head"] for b in blocks
        ]
        spans = [span for span in spans if -1 not in span]
        assert len(spans) >= 5
        assert all(max(before) < min(later) for before, later in pairwise(spans)), (
            "not in the order of computing"
        )
        at_root = {n for n, _ in module.named_parameters(recurse=False)}
        assert at_root <= set(blocks[0].parameters)

        sizes = {n: tuple(p.shape) for n, p in module.named_parameters()}
        plan = make_plan(blocks, sizes, AdaptConfig(freeze=("backbone",)), OptimConfig())
        groups = apply_stage(module, plan, 0)
        trained = {n for n, p in module.named_parameters() if p.requires_grad}
        assert trained == set(blocks[-1].parameters) == set(chain(*(g.names for g in groups)))
        set_modes(module, plan, blocks, 0)
        assert not any(module.get_submodule(path).training for b in blocks for path in b.norms)


@pytest.mark.parametrize("name", TWO_HEADS)
def test_two_classifiers_are_refused_in_words(name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(UserError, match=f"timm:{name} has not one linear classifier but 2 classifiers"),
    ):
        create(f"timm:{name}", 5)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"]
)
def test_backbones_published_without_a_classifier_get_one(name: str) -> None:
    with torch.device("meta"):
        made = create(f"timm:{name}", image_size=(56, 56))
        assert made.classes == ()
        change = fit_head(made.module, made.head, made.classes, ["ant", "bee", "cat"], seed=0)
        assert (change.kind, change.reason) == ("new", "the weights hold no classifier")
        assert find_blocks(made.module, made.head)[-1].parameters == ("head.weight", "head.bias")
        assert made.module(torch.zeros(2, 3, 56, 56)).shape == (2, 3)


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet10t",
        "timm:vit_tiny_patch16_224",
        "timm:mobilenetv3_small_050",
        "torchvision:mobilenet_v3_small",
        "torchvision:squeezenet1_1",
        "builtin:fashion_cnn",
    ],
)
def test_dropout_changes_what_is_computed(name: str) -> None:
    def outputs(rate: float) -> list[Tensor]:
        torch.manual_seed(0)
        made = create(name, 3, dropout=rate, image_size=(32, 32))
        images = torch.rand(2, made.preprocessing.num_channels, 32, 32)
        for (
            module
        ) in made.module.modules():  # everything at rest but dropout, which alone may tell runs apart
            module.train(isinstance(module, nn.Dropout) or not list(module.children()))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        made.module.training = True
        with torch.no_grad():
            return [made.module(images) for _ in range(2)]

    still, dropped = outputs(0.0), outputs(0.5)
    assert torch.equal(*still)
    assert not torch.equal(*dropped)
