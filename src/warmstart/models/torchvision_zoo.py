"""torchvision's names, and its classifiers. torchvision is imported inside functions because it costs seconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from warmstart.errors import UserError, closest
from warmstart.models.created import Created, Outline, Wanted, check_in_channels, is_convolutional, shapes_of
from warmstart.models.download import fetch
from warmstart.models.sizes import Size, check_image_size
from warmstart.models.without_values import without_values
from warmstart.records import Preprocessing

_NUM_CHANNELS = 3
_NUM_IMAGENET = 1000
_SMALLEST_REGNET = "regnet_x_400mf"
# Family -> the argument that takes the image size, where the weights depend on it.
_SIZE_ARGUMENTS = {"vit": "image_size", "maxvit": "input_size"}
# Their extra classifiers serve training from scratch only; the module is built without, files may have them.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def import_models() -> Any:
    """The package torchvision.models, or a UserError that explains the import failure users really meet."""
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise torchvision_mismatch(error) from error
    return models


def torchvision_mismatch(error: Exception) -> UserError:
    return UserError(
        f"torch {_version('torch')} and torchvision {_version('torchvision')} do not belong together: {error}",
        "builds of torch and torchvision made for each other, from one package index",
        "pip install --force-reinstall torch torchvision   (without a GPU: pip install --force-reinstall "
        "torch torchvision --index-url https://download.pytorch.org/whl/cpu)",
    )


def torchvision_names() -> list[str]:
    """Names of classifiers and of segmentation models."""
    models = import_models()
    return [*models.list_models(module=models), *models.list_models(module=models.segmentation)]


def torchvision_tags(arch: str) -> list[str]:
    """Names of an architecture's pretrained weights, as in `torchvision:ARCH.TAG`."""
    return [weights.name for weights in import_models().get_model_weights(arch)]


def check_torchvision(bare: str) -> bool:
    """Whether `bare` is ARCH or ARCH.TAG; UserError for a known architecture with an unknown tag."""
    arch, dot, tag = bare.partition(".")
    if arch not in torchvision_names():
        return False
    tags = torchvision_tags(arch)
    if dot and tag not in (*tags, "DEFAULT"):
        raise UserError(
            f"torchvision has no weights {tag!r} of {arch}",
            f"one of {', '.join(tags)}; without a tag: DEFAULT",
            closest(tag, tags) or f"--model torchvision:{arch}",
        )
    return True


def create_torchvision(bare: str, wanted: Wanted) -> Created:
    """Build torchvision:`bare` as `zoo.create` promises; pretrained weights come with their own outputs."""
    name, weights = f"torchvision:{bare}", weights_of(bare)
    bare = bare.partition(".")[0]
    check_in_channels(name, wanted, _NUM_CHANNELS)
    preprocessing = _preprocessing(bare, weights)
    size = wanted.image_size or preprocessing.image_size
    num_outputs = wanted.num_classes or _NUM_IMAGENET
    if size != preprocessing.image_size:
        _check_size(bare, size, preprocessing.image_size, wanted.pretrained)
    if size != preprocessing.image_size and not wanted.runs_there:
        check_image_size(lambda s: _make(bare, num_outputs, s), name, size, _NUM_CHANNELS)
    if wanted.dropout is not None:
        _set_dropout(_skeleton(bare), bare, wanted.dropout)  # refused here, before any download
    if wanted.pretrained:
        module = fetch(lambda: _pretrained(bare, weights), name, size)
    else:
        module = _make(bare, num_outputs, size)
    if wanted.dropout is not None:
        _set_dropout(module, bare, wanted.dropout)
    return Created(
        module=module,
        head=_head(module, bare),
        preprocessing=Preprocessing(size, preprocessing.mean, preprocessing.std, preprocessing.crop_pct),
        licence=None,
        channels_last=is_convolutional(module),
        classes=tuple(weights.meta["categories"]) if wanted.pretrained else None,
        origin=weights.url if wanted.pretrained else None,
        training_only=_AUXILIARY.get(bare, ()),
    )


def outline_torchvision(bare: str) -> Outline:
    """Of ARCH or ARCH.TAG. RegNets compute their widths with tensors, which the meta device cannot."""
    arch = bare.partition(".")[0]
    size = _preprocessing(arch, weights_of(bare)).image_size
    with without_values("cpu" if _family(arch) == "regnet" else "meta"):
        module = _make(arch, 2, size)
    first = next(path for path, m in module.named_modules() if isinstance(m, nn.Conv2d))
    return Outline(_head(module, arch), first, _family(arch) in _SIZE_ARGUMENTS, shapes_of(module), size)


def weights_of(bare: str) -> Any:
    """The weights that ARCH.TAG names, or the default ones of ARCH."""
    arch, _, tag = bare.partition(".")
    return getattr(import_models().get_model_weights(arch), tag or "DEFAULT")


def _make(bare: str, num_outputs: int, size: Size) -> nn.Module:
    options: dict[str, Any] = {}
    if argument := _SIZE_ARGUMENTS.get(_family(bare)):
        options[argument] = size[0] if argument == "image_size" else size
    if bare in _AUXILIARY:
        options |= {"aux_logits": False, "transform_input": False, "init_weights": True}
    module: nn.Module = import_models().get_model(bare, weights=None, num_classes=num_outputs, **options)
    return module


def _skeleton(bare: str) -> nn.Module:
    """A module with the structure of `bare`, on the meta device, which costs no memory.

    RegNets compute their widths with tensors, which that device cannot: the smallest stands for all.
    """
    if is_regnet := _family(bare) == "regnet":
        bare = _SMALLEST_REGNET
    size = _preprocessing(bare, import_models().get_model_weights(bare).DEFAULT).image_size
    with without_values("cpu" if is_regnet else "meta"):
        return _make(bare, 2, size)


def _pretrained(bare: str, weights: Any) -> nn.Module:
    module: Any = import_models().get_model(bare, weights=weights)
    if bare in _AUXILIARY:
        module.transform_input = False  # _preprocessing states what it would do
        module.aux_logits = False
        for prefix in _AUXILIARY[bare]:
            setattr(module, prefix.removesuffix("."), None)
    plain: nn.Module = module
    return plain


def _family(bare: str) -> str:
    return bare.partition("_")[0]


def _preprocessing(bare: str, weights: Any) -> Preprocessing:
    """What the default weights were evaluated with; also the best guess for other weights."""
    transforms = weights.transforms()
    side, resized = transforms.crop_size[0], transforms.resize_size[0]
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if bare in _AUXILIARY:  # with these numbers the module need not transform its input, and is plain
        mean = std = (0.5,) * _NUM_CHANNELS
    return Preprocessing((side, side), mean, std, min(1.0, side / resized))


def _check_size(bare: str, size: Size, own: Size, pretrained: bool) -> None:
    argument = _SIZE_ARGUMENTS.get(_family(bare))
    height, width = size
    if argument and pretrained:
        raise UserError(
            f"the pretrained weights of torchvision:{bare} do not fit images of {height}x{width} pixels",
            f"the image size they were trained at, {own[0]}x{own[1]}",
            "leave --image-size out, or choose another --model",
        )
    if argument == "image_size" and height != width:
        raise UserError(
            f"torchvision:{bare} takes square images, not {height}x{width} pixels",
            "a square --image-size",
            f"--image-size {height}x{height}, or a timm model",
        )


def _head(module: nn.Module, bare: str) -> str:
    """The last linear layer or 1x1 convolution: torchvision's classifiers all end with it."""
    layers = [
        path
        for path, m in module.named_modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
    ]
    assert layers, f"torchvision:{bare} has no classifier"
    return layers[-1]


def _set_dropout(module: nn.Module, bare: str, rate: float) -> None:
    """Set every dropout that stands beside the classifier and before it, as torchvision's own argument does."""
    parent, _, last = _head(module, bare).rpartition(".")
    found = False
    for name, layer in module.get_submodule(parent).named_children():
        if name == last:
            break
        if isinstance(layer, nn.Dropout):
            layer.p, found = rate, True
    if not found:
        raise UserError(
            f"torchvision:{bare} has no dropout before its head, so --dropout {rate} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
