"""Right and wrong pairs of a file and a model: every one loads and says how, or names the cause and the way out.

The files are of real architectures. Where only names and shapes matter, each tensor is one number, expanded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build
from warmstart.models.builtin.fashion_cnn import FashionCNN

State = dict[str, Tensor]
TWO = ("ant", "bee")


@cache
def _shapes(
    zoo: str, name: str, options: tuple[tuple[str, Any], ...]
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    import timm
    from torchvision import models

    make: Callable[..., nn.Module] = timm.create_model if zoo == "timm" else models.get_model
    with torch.device("meta"):
        module = make(name, **dict(options))
    return {key: (tensor.shape, tensor.dtype) for key, tensor in module.state_dict().items()}


def of(name: str, **options: Any) -> State:
    """The tensors of timm's or torchvision's model `zoo:name`, each a zero that is expanded to its shape."""
    zoo, bare = name.split(":")
    found = _shapes(zoo, bare, tuple(options.items()))
    return {key: torch.zeros((), dtype=kind).expand(shape) for key, (shape, kind) in found.items()}


def cnn(width: int = 64, **changes: int) -> State:
    """The built-in network with other widths: conv1, conv2, conv3 and fc1 have width, 2, 4 and 4 times it."""
    widths = {"conv1": width, "conv2": 2 * width, "conv3": 4 * width, "fc1": 4 * width, **changes}
    net: Any = FashionCNN(2)
    before = 1
    for name, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
        size = net.get_submodule(name).kernel_size[0]
        setattr(net, name, nn.Conv2d(before, widths[name], size))
        setattr(net, norm, nn.BatchNorm2d(widths[name]))
        before = widths[name]
    net.fc1, net.bn_fc, net.fc2 = (
        nn.Linear(before, widths["fc1"]),
        nn.BatchNorm1d(widths["fc1"]),
        nn.Linear(widths["fc1"], 2),
    )
    state: State = net.state_dict()
    return state


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def cast(state: State, kind: torch.dtype) -> State:
    return {key: tensor.to(kind) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def without(state: State, *parts: str) -> State:
    return {key: tensor for key, tensor in state.items() if not any(part in key for part in parts)}


def renamed(state: State, **names: str) -> State:
    """First part of a name -> another."""
    return {
        ".".join((names.get(key.split(".")[0], key.split(".")[0]), *key.split(".")[1:])): t
        for key, t in state.items()
    }


def with_lora(prefix: str, whole: bool) -> State:
    factors = {f"{prefix}layer1.0.conv1.lora_{part}.default.weight": torch.zeros(4, 64) for part in "AB"}
    return (under(prefix, of("timm:resnet18", num_classes=2)) if whole else {}) | factors


def masked() -> State:
    net = FashionCNN(2)
    for layer in (net.conv2, net.fc1):
        prune.l1_unstructured(layer, "weight", amount=0.25)
    return dict(net.state_dict())


def bitsandbytes() -> State:
    state = of("timm:vit_tiny_patch16_224", num_classes=2)
    for key in [key for key in state if key.endswith("qkv.weight")]:
        state[key] = torch.zeros(state[key].numel() // 2, 1, dtype=torch.uint8)
        state |= {f"{key}.absmax": torch.zeros(9), f"{key}.quant_map": torch.zeros(16)}
    return state


def int8() -> State:
    """Of the same shapes: without a look at the types it would load."""
    return {key: t.to(torch.int8) if t.ndim > 1 else t for key, t in FashionCNN(2).state_dict().items()}


def transformers_vit() -> State:
    hidden: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, 192),
        "vit.embeddings.position_embeddings": (1, 197, 192),
        "vit.embeddings.patch_embeddings.projection.weight": (192, 3, 16, 16),
        "classifier.weight": (2, 192),
    }
    for layer in range(12):
        for part in ("query", "key", "value"):
            hidden[f"vit.encoder.layer.{layer}.attention.attention.{part}.weight"] = (192, 192)
    return {key: torch.zeros(1).expand(shape) for key, shape in hidden.items()}


def with_gates(prefix: str = "") -> State:
    """A ResNet-18 with squeeze-and-excitation in every block, under names that look like heads."""
    gates = {}
    for layer, block in product(range(1, 5), range(2)):
        width = 32 * 2**layer
        gates[f"layer{layer}.{block}.se.fc.0.weight"] = torch.zeros(1).expand(width // 16, width)
        gates[f"layer{layer}.{block}.se.fc.2.weight"] = torch.zeros(1).expand(width, width // 16)
    return under(prefix, of(TV18, num_classes=2) | gates)


def detector() -> State:
    body = without(under("backbone.body.", of("torchvision:resnet18")), ".fc.", "num_batches")
    extra = {
        "rpn.head.conv.weight": torch.zeros(8, 8, 3, 3),
        "roi_heads.box_head.fc6.weight": torch.zeros(8, 8),
    }
    return body | under("backbone.fpn.", {"inner_blocks.0.0.weight": torch.zeros(8, 64, 1, 1)}) | extra


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


class Pair(NamedTuple):
    """A file's content, the model asked for, and words of the error's cause and fix; or of a note, if it loads."""

    content: Callable[[], Any]
    model: str | None
    cause: str = ""
    fix: str = ""
    note: str = ""
    overrides: dict[str, Any] = {}  # noqa: RUF012 (never changed)


FASHION, R18, TV18, VIT = (
    "builtin:fashion_cnn",
    "timm:resnet18",
    "torchvision:resnet18",
    "timm:vit_tiny_patch16_224",
)
OBJECT = r"as an nn\.Module"

WRONG = {
    "gates in every block": Pair(
        with_gates, TV18, r"\(100.0% of .* fit\): 16 not in the model: layer1.0.se.fc.0.weight"
    ),
    "gates, and no model named": Pair(
        with_gates, None, r"does not say which model its 138 tensors belong to$"
    ),
    "gates, and no classifier": Pair(
        lambda: without(with_gates(), "layer1.0.se", "fc.bias") | {"fc.weight": torch.zeros(2, 9)},
        TV18,
        r"14 not in the model: layer1.1.se.fc.0.weight",
    ),
    "half a classifier": Pair(
        lambda: without(of(R18, num_classes=2), "fc.bias"),
        R18,
        r"does not fit timm:resnet18: the backbone does, its classifier does not: 1 missing from the file: fc.bias$",
        "whole classifier, or leave it out",
    ),
    "half the width": Pair(
        lambda: cnn(32),
        FASHION,
        r"another width: \d+ tensors differ as if .* 0\.5 times .*"
        "has 32 in the file, and you asked for 64",
        OBJECT,
    ),
    "one and a half the width": Pair(lambda: cnn(96), FASHION, "another width: .* 1.5 times", OBJECT),
    "channels cut out": Pair(
        lambda: cnn(conv1=51, conv2=97, conv3=200, fc1=131),
        FASHION,
        r"pruned: \d+ tensors have fewer channels, by different shares",
        OBJECT,
    ),
    "five input channels": Pair(
        lambda: {**cnn(), "conv1.weight": torch.zeros(64, 5, 5, 5)},
        FASHION,
        "takes 1 channel, not 5",
        "timm model",
    ),
    "four bands for torchvision": Pair(
        lambda: {**of(TV18), "conv1.weight": torch.zeros(64, 4, 7, 7)},
        TV18,
        "takes 3 channels, not 4",
        "timm model",
    ),
    "deeper, timm": Pair(
        lambda: of("timm:resnet34"),
        R18,
        "timm:resnet34 and torchvision:resnet34 exactly: another "
        "depth: layer1 has 3 blocks in the file and 2 in",
        "--model timm:resnet34",
    ),
    "shallower, timm": Pair(
        lambda: of(R18), "timm:resnet34", "timm:resnet18 .*exactly: another depth", f"--model {R18}"
    ),
    "deeper, torchvision": Pair(lambda: of("torchvision:resnet34"), TV18, "resnet34 .*exactly", "resnet34"),
    "bottlenecks": Pair(lambda: of("timm:resnet50"), R18, "timm:resnet50 .*exactly", "--model timm:resnet50"),
    "wide bottlenecks": Pair(
        lambda: of("timm:wide_resnet50_2"),
        "timm:resnet50",
        "timm:wide_resnet50_2 .*exactly: another width|timm:wide_resnet50_2 .*exactly",
        "--model timm:wide_resnet50_2",
    ),
    "resnet with a deep stem": Pair(
        lambda: of("timm:resnet18d"), R18, "timm:resnet18d exactly", "--model timm:resnet18d"
    ),
    "wider transformer": Pair(
        lambda: of("timm:vit_small_patch16_224"),
        VIT,
        "timm:vit_small_patch16_224 exactly: another width: .* 2 times",
        "--model timm:vit_small_patch16_224",
    ),
    "other patches": Pair(
        lambda: of("timm:vit_small_patch32_224"),
        "timm:vit_small_patch16_224",
        "vit_small_patch32_224 exactly: another patch size: .* patches of 32 pixels, .* has 16",
        "vit_small_patch32_224",
    ),
    "deeper transformer": Pair(
        lambda: of("timm:vit_tiny_patch16_224", depth=14),
        VIT,
        "another depth: blocks has 14 blocks in the file and 12 in",
        OBJECT,
    ),
    "other window": Pair(
        lambda: of("timm:test_vit", embed_dim=80, num_heads=2), "timm:test_vit", "does not fit", "model"
    ),
    "other multiplier": Pair(
        lambda: of("timm:mobilenetv3_small_075"),
        "timm:mobilenetv3_small_100",
        "timm:mobilenetv3_small_075 exactly",
        "--model timm:mobilenetv3_small_075",
    ),
    "torchvision's transformer for timm's": Pair(
        lambda: of("torchvision:vit_b_16"),
        "timm:vit_base_patch16_224",
        "torchvision:vit_b_16 exactly",
        "--model torchvision:vit_b_16",
    ),
    "timm's mobilenet for torchvision's": Pair(
        lambda: of("timm:mobilenetv2_100"),
        "torchvision:mobilenet_v2",
        "timm:mobilenetv2_100 exactly",
        "--model timm:mobilenetv2_100",
    ),
    "another model altogether": Pair(
        lambda: of("timm:convnext_tiny"), R18, "timm:convnext_tiny .*exactly", "--model timm:convnext_tiny"
    ),
    "another model, no name given": Pair(
        lambda: of("timm:densenet121"),
        None,
        "does not say which model .* they fit torchvision:densenet121 and timm:densenet121 exactly",
        "--model torchvision:densenet121",
    ),
    "a relative of a popular model": Pair(
        lambda: of("timm:seresnet101"), None, "timm:seresnet101 exactly", "seresnet101"
    ),
    "nearly a known model": Pair(
        lambda: of("timm:resnet50") | {"attention.weight": torch.zeros(2048, 64)},
        R18,
        "does not fit",
        "nearest known model is (timm|torchvision):resnet50 .99%",
    ),
    "nothing known": Pair(
        lambda: {"a.weight": torch.zeros(7, 9), "b.weight": torch.zeros(3, 7)},
        FASHION,
        "0.0% of the backbone",
        "no known model is like it",
    ),
    "nothing known, no name": Pair(
        lambda: {"w": torch.zeros(5, 5)},
        None,
        "does not say which model its 1 tensors",
        "no known model is like it",
    ),
    "names of one's own": Pair(
        lambda: {f"net{i}.w": t for i, t in enumerate(of(R18).values())},
        R18,
        "does not fit",
        "shapes of torchvision:resnet18|shapes of timm:resnet18",
    ),
    "a layer left out": Pair(
        lambda: without(cnn(), "fc1"), FASHION, r"missing from the file: fc1\.weight", OBJECT
    ),
    "an extra layer": Pair(
        lambda: cnn() | {"gate.weight": torch.zeros(4, 4)},
        FASHION,
        r"\(100.0% .*1 not in the model: gate\.weight",
        "--model",
    ),
    "LoRA beside the weights": Pair(
        lambda: with_lora("base_model.model.", True),
        R18,
        "LoRA adapters are not merged: 2 of",
        "merge_and_unload",
    ),
    "LoRA alone": Pair(
        lambda: with_lora("base_model.model.", False), R18, "only a LoRA adapter", "merge_and_unload"
    ),
    "4 bits": Pair(bitsandbytes, VIT, r"quantised \(12 tensors of uint8\)", "dequantize"),
    "8 bits of the same shapes": Pair(
        int8, FASHION, r"quantised \(\d tensors of int8\)", "before quantisation|dequantize"
    ),
    "quantised by torch": Pair(
        lambda: cnn() | {"fc1.scale": torch.ones(()), "fc1.zero_point": torch.zeros((), dtype=torch.long)},
        FASHION,
        "it is quantised",
        "save those",
    ),
    "transformers' names": Pair(
        transformers_vit,
        VIT,
        "names are those of Hugging Face transformers",
        "--model timm:vit_tiny_patch16_224 is the same architecture",
    ),
    "CLIP": Pair(
        lambda: {
            "logit_scale": torch.ones(()),
            "visual.proj": torch.zeros(8, 8),
            "token_embedding.weight": torch.zeros(9, 8),
        },
        VIT,
        "CLIP-like model",
        "image tower",
    ),
    "a detector": Pair(
        detector,
        VIT,
        "detection checkpoint .*, whose backbone is that of timm:resnet18",
        "--model timm:resnet18 takes the backbone",
    ),
    "a detector, no name given": Pair(
        lambda: without(detector(), "layer4"), None, "detection checkpoint", "backbone alone"
    ),
    "a segmenter": Pair(
        lambda: {"backbone.a.weight": torch.zeros(4, 4), "aux_classifier.0.weight": torch.zeros(4, 4)},
        R18,
        "segmentation checkpoint",
        "backbone alone",
    ),
    "an optimizer": Pair(
        lambda: OPTIMIZER, FASHION, "state of an optimizer and no weights", "the weights were saved to"
    ),
    "an optimizer in a wrapper": Pair(
        lambda: {"epoch": 3, "optimizer_state_dict": OPTIMIZER},
        FASHION,
        "optimizer under 'optimizer_state_dict' and no weights",
        "pass the file",
    ),
    "two students": Pair(
        lambda: under("student.", cnn()) | under("teacher.", cnn()),
        FASHION,
        "builtin:fashion_cnn 2 times: under 'student.' and under 'teacher.'",
        "removeprefix",
    ),
}

RIGHT = {
    "the model itself": Pair(cnn, FASHION, note="^$"),
    "a prefix of one's own": Pair(
        lambda: under("classifier_net.encoder.", cnn()),
        FASHION,
        note=r"stripped the prefix 'classifier_net\.encoder\.' from 30 names",
    ),
    "a backbone with the head outside": Pair(
        lambda: (
            under("feature_extractor.", without(of("timm:resnet10t", num_classes=2), "fc."))
            | {"fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)}
        ),
        "timm:resnet10t",
        note=r"stripped the prefix 'feature_extractor\.'",
    ),
    "an EMA twin": Pair(
        lambda: cnn() | under("ema.", cnn()), FASHION, note="EMA twin under 'ema.' was not taken"
    ),
    "an EMA twin of a wrapped model": Pair(
        lambda: under("net_a.", cnn()) | under("ema_model.", cnn()),
        FASHION,
        note="EMA twin under 'ema_model.' was not taken.*stripped the prefix 'net_a.'",
    ),
    "compiled parts": Pair(
        lambda: under("wrapped._orig_mod.", cnn()), FASHION, note="wrapper '_orig_mod' out of 30 names"
    ),
    "pruning masks": Pair(
        masked, FASHION, note=r"pruned: multiplied 2 pruning masks into their weights \(25% are zero"
    ),
    "float16": Pair(
        lambda: cast(cnn(), torch.float16), FASHION, note=r"\d+ tensors are float16: converted to float32"
    ),
    "bfloat16": Pair(
        lambda: cast(cnn(), torch.bfloat16), FASHION, note=r"\d+ tensors are bfloat16: converted"
    ),
    "no counters": Pair(lambda: without(cnn(), "num_batches"), FASHION, note="lacks 4 counters and tables"),
    "a second head": Pair(
        lambda: cnn() | {"aux_head.weight": torch.zeros(3, 256)},
        FASHION,
        note="left out 1 tensors of other heads: aux_head",
    ),
    "a dropout before the head": Pair(
        lambda: {k.replace("fc.", "fc.1."): t for k, t in of("timm:resnet10t", num_classes=2).items()},
        "timm:resnet10t",
        note=r"took the classifier 'fc\.1' as 'fc'",
    ),
    "a head of two layers": Pair(
        lambda: (
            without(of("timm:resnet10t"), "fc.")
            | {"fc.0.weight": torch.zeros(64, 512), "fc.2.weight": torch.zeros(2, 64)}
        ),
        "timm:resnet10t",
        note=r"left out its classifier \(fc\.0, fc\.2\)",
    ),
    "a head of another name": Pair(
        lambda: renamed(of("timm:resnet10t", num_classes=2), fc="last_linear"),
        "timm:resnet10t",
        note="took the classifier 'last_linear' as 'fc'",
    ),
    "colour into grey": Pair(
        lambda: {**cnn(), "conv1.weight": torch.ones(64, 3, 5, 5)},
        FASHION,
        note="stem 'conv1': summed its 3 input channels into 1",
    ),
    "grey into colour": Pair(
        lambda: {**of(TV18, num_classes=2), "conv1.weight": torch.ones(64, 1, 7, 7)},
        TV18,
        note="stem 'conv1': spread its 1 input channel over 3",
    ),
    "grey into colour, as the mean says": Pair(
        lambda: of("timm:resnet10t", num_classes=2, in_chans=1),
        "timm:resnet10t",
        note="spread its 1 input channel over 3",
        overrides={"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)},
    ),
    "a smaller grid": Pair(
        lambda: of(VIT, img_size=64, num_classes=2),
        VIT,
        note="are for images of 64x64: taken as the image size",
    ),
    "a grid moved": Pair(
        lambda: of(VIT, img_size=64, num_classes=2),
        VIT,
        note="moved from images of 64x64 to 96x96",
        overrides={"image_size": (96, 96)},
    ),
    "a grid moved, torchvision": Pair(
        lambda: of("torchvision:vit_b_32", image_size=64, num_classes=2),
        "torchvision:vit_b_32",
        note="moved from images of 64x64 to 96x96",
        overrides={"image_size": (96, 96)},
    ),
    "a detector's backbone": Pair(detector, TV18, note="stripped the prefix 'backbone.body.'"),
    "another number of classes": Pair(
        lambda: of("timm:resnet10t", num_classes=7), "timm:resnet10t", note="^$"
    ),
}


def made(pair: Pair, folder: Path) -> BuiltModel:
    torch.save(pair.content(), folder / "m.pt")
    return build(ModelConfig(name=pair.model, weights=str(folder / "m.pt")), pair.overrides, TWO, seed=0)


def test_there_are_enough_pairs() -> None:
    assert len(WRONG) + len(RIGHT) >= 60


@pytest.mark.parametrize("case", WRONG)
def test_the_cause_and_the_fix_are_named(case: str, tmp_path: Path) -> None:
    pair, start = WRONG[case], time.process_time()
    with pytest.raises(UserError) as caught:
        made(pair, tmp_path)
    error = caught.value
    assert re.search(pair.cause, error.happened), error
    assert re.search(pair.fix, error.fix), error
    assert error.expected and len(str(error)) < 900
    assert time.process_time() - start < 15, "the search is bounded"


@pytest.mark.parametrize("case", RIGHT)
def test_what_fits_after_all_loads_and_says_how(case: str, tmp_path: Path) -> None:
    built = made(RIGHT[case], tmp_path)
    notes = "; ".join(note for note in built.notes if not note.startswith("ignored"))
    assert re.search(RIGHT[case].note, notes), notes
    size = built.preprocessing.image_size
    assert built.module.eval()(torch.zeros(1, built.preprocessing.num_channels, *size)).shape == (1, 2)
