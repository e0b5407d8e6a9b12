"""torchvision's segmentation models by name: DeepLabV3 and FCN.

Shapes: N images, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.created import Created, Outline, Wanted, check_in_channels, shapes_of
from warmstart.models.download import fetch
from warmstart.models.sizes import check_image_size
from warmstart.models.torchvision_zoo import import_models, weights_of
from warmstart.records import Preprocessing

_NUM_CLASSES, _NUM_CHANNELS = 21, 3  # of the published weights: Pascal VOC
_ENCODER, _AUXILIARY = "backbone.", "aux_classifier."


def is_segmenter(bare: str) -> bool:
    """Whether ARCH or ARCH.TAG is one of torchvision's segmentation models."""
    models = import_models()
    return bare.partition(".")[0] in models.list_models(module=models.segmentation)


def create_segmenter(bare: str, wanted: Wanted) -> Created:
    """Build torchvision:`bare` as `zoo.create` promises; the module gives a tensor (N, K, H, W), not a dict."""
    name, weights, arch = f"torchvision:{bare}", weights_of(bare), bare.partition(".")[0]
    check_in_channels(name, wanted, _NUM_CHANNELS)
    own = _preprocessing(weights)
    size = wanted.image_size or own.image_size
    _head(_make(arch, 2, "meta"), name)  # refused here, before any download
    if size != own.image_size:
        check_image_size(lambda _: _make(arch, 2), name, size, _NUM_CHANNELS)
    if wanted.pretrained:
        module = fetch(lambda: _pretrained(arch, weights), name, size)
    else:
        module = _make(arch, wanted.num_classes or _NUM_CLASSES)
    if wanted.dropout is not None:
        for layer in module.get_submodule("classifier").modules():
            if isinstance(layer, nn.Dropout):
                layer.p = wanted.dropout
    return Created(
        module=module,
        head=_head(module, name),
        preprocessing=Preprocessing(size, own.mean, own.std, own.crop_pct),
        licence=None,
        channels_last=True,
        classes=tuple(weights.meta["categories"]) if wanted.pretrained else None,
        origin=weights.url if wanted.pretrained else None,
        training_only=(_AUXILIARY,),
        segments=True,
    )


def outline_segmenter(bare: str) -> Outline:
    """Of ARCH or ARCH.TAG."""
    module = _make(bare.partition(".")[0], 2, "meta")
    first = next(path for path, m in module.named_modules() if isinstance(m, nn.Conv2d))
    size = _preprocessing(weights_of(bare)).image_size
    head = _head(module, f"torchvision:{bare}")
    return Outline(head, first, False, shapes_of(module), size, segments=True, encoder=_ENCODER)


def _make(arch: str, num_outputs: int, device: str | None = None) -> nn.Module:
    with torch.device(device or torch.get_default_device()):
        module = import_models().get_model(
            arch, weights=None, weights_backbone=None, num_classes=num_outputs, aux_loss=False
        )
    return _plain(module)


def _pretrained(arch: str, weights: Any) -> nn.Module:
    module = import_models().get_model(arch, weights=weights)
    module.aux_classifier = None
    return _plain(module)


def _plain(module: nn.Module) -> nn.Module:
    module.register_forward_hook(_only_out)
    return module


def _only_out(module: nn.Module, args: Any, outputs: Mapping[str, Tensor]) -> Tensor:
    return outputs["out"]


def _preprocessing(weights: Any) -> Preprocessing:
    """What the weights were evaluated with: the shorter side resized, nothing cropped."""
    transforms = weights.transforms()
    side = transforms.resize_size[0]
    return Preprocessing((side, side), tuple(transforms.mean), tuple(transforms.std), crop_pct=1.0)


def _head(module: nn.Module, name: str) -> str:
    """The last convolution of the classifier."""
    classifier = module.get_submodule("classifier")
    layers = [path for path, m in classifier.named_children() if isinstance(m, nn.Conv2d)]
    if len(layers) == 1 or isinstance(classifier, nn.Sequential):
        return f"classifier.{layers[-1]}"
    raise UserError(
        f"{name} has not one classifier but {len(layers)} whose outputs are added ({', '.join(layers)})",
        "a model whose classifier is one layer",
        "--model torchvision:deeplabv3_mobilenet_v3_large",
    )
