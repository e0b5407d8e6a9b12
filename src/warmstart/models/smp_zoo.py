"""segmentation_models_pytorch by name: `smp:ARCH/ENCODER`, as in `smp:Unet/resnet34` or `smp:FPN/tu-resnet18`.

The package is an optional extra, and imported inside functions because it costs seconds.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from warmstart.errors import UserError, closest
from warmstart.models.created import Created, Outline, Wanted, is_convolutional, shapes_of
from warmstart.models.download import fetch
from warmstart.models.sizes import Size, check_image_size, first_line
from warmstart.models.timm_zoo import import_timm, in_timm
from warmstart.records import Preprocessing

_HEAD, _ENCODER = "segmentation_head.0", "encoder."
_TIMM = "tu-"  # what smp puts before the name of a timm model
_OWN_SIZE = (512, 512)  # where the encoder has no fixed one
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# By the start of an encoder's name. smp itself asks the hub, even for models without pretrained weights.
_NORMALISATION = {
    "inception": ((0.5,) * 3, (0.5,) * 3),
    "xception": ((0.5,) * 3, (0.5,) * 3),
    "dpn": ((124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3),
}
_LEFT_OUT = ("DPT",)  # for vision transformers alone, and with another head
_EXAMPLE = "--model smp:Unet/resnet34"


def import_smp() -> Any:
    """The package segmentation_models_pytorch, or a UserError that says how to get it."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise UserError(
            f"models named smp:ARCH/ENCODER need segmentation_models_pytorch ({first_line(error)})",
            "the package, an optional extra",
            "pip install 'warmstart[smp]'",
        ) from error
    return smp


def check_smp(bare: str) -> str:
    """ARCH/ENCODER in smp's own spelling; UserError for an unknown one of the two."""
    smp = import_smp()
    known = [kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    archs = {name.lower(): name for name in known if name not in _LEFT_OUT}
    arch, slash, encoder = bare.partition("/")
    if arch.lower() not in archs:
        raise UserError(
            f"segmentation_models_pytorch has no architecture {arch!r}",
            f"smp:ARCH/ENCODER with one of {', '.join(archs.values())}",
            closest(arch, archs.values()) or _EXAMPLE,
        )
    names = smp.encoders.get_encoder_names()
    if encoder not in names and not (encoder.startswith(_TIMM) and in_timm(encoder.removeprefix(_TIMM))):
        if encoder.startswith(_TIMM):
            names = [f"{_TIMM}{name}" for name in import_timm().list_models()]
        raise UserError(
            f"segmentation_models_pytorch has no encoder {encoder!r}"
            if slash
            else f"smp:{bare} names no encoder",
            "smp:ARCH/ENCODER with an encoder of smp's own (resnet34, mit_b0, efficientnet-b0, ...) or "
            f"{_TIMM}NAME for a timm model",
            closest(encoder, names) or f"--model smp:{archs[arch.lower()]}/resnet34",
        )
    return f"{archs[arch.lower()]}/{encoder}"


def create_smp(bare: str, wanted: Wanted) -> Created:
    """Build smp:`bare` as `zoo.create` promises; pretrained weights are those of the encoder alone."""
    name, encoder = f"smp:{bare}", bare.partition("/")[2]
    weights = _weights(name, encoder) if wanted.pretrained else None
    own = _preprocessing(encoder, wanted.in_channels)
    size = wanted.image_size or own.image_size
    if wanted.dropout is not None:
        # Refused here, before any download.
        _set_dropout(_skeleton(bare, wanted.in_channels), name, wanted.dropout)
    if size != own.image_size or wanted.pretrained:
        check_image_size(lambda s: _make(bare, 2, wanted.in_channels, s), name, size, own.num_channels)
    make = lambda: _make(bare, wanted.num_classes or 1, wanted.in_channels, size, weights)  # noqa: E731
    module = fetch(make, name, size) if wanted.pretrained else make()
    if wanted.dropout is not None:
        _set_dropout(module, name, wanted.dropout)
    return Created(
        module=module,
        head=_HEAD,
        preprocessing=Preprocessing(size, own.mean, own.std, own.crop_pct),
        licence=None,
        channels_last=is_convolutional(module),
        classes=() if wanted.pretrained else None,
        origin=f"{encoder} ({weights})" if wanted.pretrained else None,
        segments=True,
    )


def outline_smp(bare: str) -> Outline:
    module = _skeleton(bare, None)
    encoder = bare.partition("/")[2]
    first = next((path for path, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    own = _preprocessing(encoder, None)
    return Outline(
        _HEAD, first, _is_fixed(encoder), shapes_of(module), own.image_size, segments=True, encoder=_ENCODER
    )


def _make(
    bare: str, num_outputs: int, in_channels: int | None, size: Size, weights: str | bool | None = None
) -> nn.Module:
    """UserError for an architecture and an encoder that do not go together."""
    arch, _, encoder = bare.partition("/")
    options: dict[str, Any] = {"img_size": size} if _is_fixed(encoder) else {}
    channels = in_channels or len(_preprocessing(encoder, None).mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of encoders that smp would rather have otherwise
        try:
            module: nn.Module = import_smp().create_model(
                arch, encoder, weights, in_channels=channels, classes=num_outputs, **options
            )
        except Exception as error:
            if weights is not None:
                raise  # of the download: `fetch` explains it
            raise UserError(
                f"segmentation_models_pytorch cannot build smp:{bare}: {first_line(error)}",
                "an encoder that the architecture can take",
                f"--model smp:{arch}/resnet34",
            ) from error
    return module


def _skeleton(bare: str, in_channels: int | None) -> nn.Module:
    """On the meta device, which costs no memory; but MiT computes its rates with tensors, which that one cannot."""
    encoder = bare.partition("/")[2]
    size, device = _preprocessing(encoder, in_channels).image_size, "cpu" if "mit_b" in encoder else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return _make(bare, 2, in_channels, size)


def _weights(name: str, encoder: str) -> str | bool:
    """The name that smp has for the encoder's pretrained weights."""
    if encoder.startswith(_TIMM):
        known: list[str | bool] = [True] if import_timm().is_model_pretrained(encoder[len(_TIMM) :]) else []
    else:
        known = list(import_smp().encoders.encoders[encoder]["pretrained_settings"])
    if not known:
        raise UserError(
            f"{name} has no pretrained encoder", "--weights FILE or --weights none", "pass one of the two"
        )
    return "imagenet" if "imagenet" in known else known[0]


def _is_fixed(encoder: str) -> bool:
    """Whether its weights are tied to an image size."""
    return encoder.startswith(_TIMM) and bool(_timm_config(encoder).fixed_input_size)


def _timm_config(encoder: str) -> Any:
    return import_timm().get_pretrained_cfg(encoder.removeprefix(_TIMM))


def _preprocessing(encoder: str, in_channels: int | None) -> Preprocessing:
    """What the encoder's pretrained weights were trained with; nothing is cropped."""
    size = _OWN_SIZE
    if encoder.startswith(_TIMM):
        config = _timm_config(encoder)
        mean, std = tuple(config.mean), tuple(config.std)
        if config.fixed_input_size:
            size = tuple(config.input_size[1:])
    else:
        mean, std = next((v for start, v in _NORMALISATION.items() if encoder.startswith(start)), _IMAGENET)
    if in_channels not in (None, len(mean)):  # as timm does it: the average stands for every channel
        mean, std = ((sum(values) / len(values),) * in_channels for values in (mean, std))
    return Preprocessing(size, mean, std, crop_pct=1.0)


def _set_dropout(module: nn.Module, name: str, rate: float) -> None:
    """Set every dropout of the decoder."""
    layers = [
        layer
        for layer in module.get_submodule("decoder").modules()
        if isinstance(layer, (nn.Dropout, nn.Dropout2d))
    ]
    for layer in layers:
        layer.p = rate
    if not layers:
        raise UserError(
            f"{name} has no dropout before its head, so --dropout {rate} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )
