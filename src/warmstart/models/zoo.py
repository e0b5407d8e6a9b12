"""Name -> model. The only door to timm, which is imported inside functions because it costs seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from warmstart.errors import UserError, closest
from warmstart.models.builtin import BUILTINS, recognise
from warmstart.models.created import Created, Outline, is_convolutional
from warmstart.models.download import fetch
from warmstart.models.sizes import Size, check_image_size
from warmstart.models.torchvision_zoo import (
    create_torchvision,
    outline_torchvision,
    torchvision_mismatch,
    torchvision_names,
)
from warmstart.records import Preprocessing

__all__ = ["create", "outline", "recognise", "split_name", "timm_groups"]

_ZOOS = ("timm", "torchvision", "builtin")
_PROBE_DROPOUT = 0.123


def split_name(name: str) -> tuple[str, str]:
    """`timm:resnet18` or bare `resnet18` -> ("timm", "resnet18"); unknown or ambiguous names raise UserError."""
    zoo, colon, bare = name.partition(":")
    if colon:
        if zoo not in _ZOOS:
            raise UserError(
                f"unknown model zoo {zoo!r} in --model {name}",
                "timm:NAME, torchvision:NAME or builtin:NAME",
                closest(zoo, _ZOOS),
            )
        _check_known(zoo, bare, name)
        return zoo, bare
    holds = {
        "builtin": name in BUILTINS,
        "timm": _in_timm(name),
        "torchvision": name in torchvision_names(),
    }
    found = [zoo for zoo, has in holds.items() if has]
    if len(found) > 1:
        raise UserError(
            f"{len(found)} models are called {name!r}",
            " or ".join(f"{zoo}:{name}" for zoo in found),
            "write the name with its zoo",
        )
    if not found:
        own = [*(f"builtin:{n}" for n in BUILTINS), *BUILTINS]
        raise _unknown(name, [*own, *import_timm().list_models(), *torchvision_names()])
    return found[0], name


def create(
    name: str,
    num_classes: int | None = None,
    dropout: float | None = None,
    pretrained: bool = False,
    in_channels: int | None = None,
    image_size: Size | None = None,
) -> Created:
    """Build a model; every None means the model's own default. Random parts draw from torch's CPU generator.

    UserError: unknown name, no pretrained weights or no way to fetch them, a dropout the model does not
    have, an image size it cannot run on, a number of input channels it cannot take.
    """
    zoo, bare = split_name(name)
    if zoo == "timm":
        return _create_timm(bare, num_classes, dropout, pretrained, in_channels, image_size)
    if zoo == "torchvision":
        return create_torchvision(bare, num_classes, dropout, pretrained, in_channels, image_size)
    if pretrained:
        raise UserError(
            f"builtin:{bare} has no pretrained weights to download",
            "--weights FILE, or --weights none for random initialisation",
            "pass one of the two",
        )
    spec = BUILTINS[bare]
    if in_channels not in (None, spec.preprocessing.num_channels):
        raise UserError(
            f"builtin:{bare} takes {spec.preprocessing.num_channels} channel, not {in_channels}",
            f"{spec.preprocessing.num_channels} channel",
            "choose a timm model for colour images",
        )
    size = image_size or spec.preprocessing.image_size
    classes = num_classes or spec.num_classes
    rate = spec.dropout if dropout is None else dropout
    if size != spec.preprocessing.image_size:
        check_image_size(
            lambda _: spec.make(classes, rate), f"builtin:{bare}", size, spec.preprocessing.num_channels
        )
    return Created(
        module=spec.make(classes, rate),
        head=spec.head,
        preprocessing=replace(spec.preprocessing, image_size=size),
        licence=None,
        channels_last=False,
        classes=None,
        origin=None,
    )


def outline(name: str) -> Outline:
    """Found on the meta device, which costs no memory."""
    zoo, bare = split_name(name)
    if zoo == "builtin":
        return Outline(BUILTINS[bare].head, None, False)
    if zoo == "torchvision":
        return outline_torchvision(bare)
    with torch.device("meta"):
        # Two classes: models published without a classifier would otherwise come without one.
        module = import_timm().create_model(bare, pretrained=False, num_classes=2)
    config = module.pretrained_cfg
    path, first = next(((p, m) for p, m in module.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    # A stem may fold pixels into channels before its first convolution (TResNet).
    direct = first is not None and first.in_channels == config["input_size"][0]
    return Outline(_timm_head(module, bare), path if direct else None, bool(config.get("fixed_input_size")))


def timm_groups(module: Any) -> list[list[str]]:
    """Parameter names by timm's own layer groups, stem to head; shared parameters are named once."""
    from timm.models import group_parameters

    groups = group_parameters(module, module.group_matcher(coarse=True))
    return [groups[index] for index in sorted(groups)]


def import_timm() -> Any:
    """The timm package, or a UserError that explains the one import failure users really meet."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        if "torchvision" not in str(error):
            raise
        raise torchvision_mismatch(error) from error
    return timm


def _in_timm(name: str) -> bool:
    arch, _, tag = name.partition(".")
    timm = import_timm()
    return bool(timm.is_model(arch)) and (not tag or name in timm.list_pretrained(f"{arch}.*"))


def _check_known(zoo: str, bare: str, name: str) -> None:
    if zoo == "builtin":
        if bare not in BUILTINS:
            raise _unknown(name, [f"builtin:{n}" for n in BUILTINS])
        return
    if zoo == "torchvision":
        if bare not in torchvision_names():
            raise _unknown(name, [f"torchvision:{n}" for n in torchvision_names()])
        return
    if _in_timm(bare):
        return
    arch = bare.partition(".")[0]
    timm = import_timm()
    known = timm.list_pretrained(f"{arch}.*") if timm.is_model(arch) else timm.list_models()
    raise _unknown(name, [f"timm:{n}" for n in known])


def _unknown(name: str, options: list[str]) -> UserError:
    return UserError(
        f"unknown model {name!r}",
        f"timm:NAME, timm:NAME.TAG, torchvision:NAME or builtin:NAME (builtin: {', '.join(BUILTINS)})",
        closest(name, options) or "python -c 'import timm; print(timm.list_models())' lists timm's names",
    )


def _create_timm(
    bare: str,
    num_classes: int | None,
    dropout: float | None,
    pretrained: bool,
    in_channels: int | None,
    image_size: Size | None,
) -> Created:
    timm = import_timm()
    config = timm.get_pretrained_cfg(bare)
    channels = in_channels or config.input_size[0]
    if pretrained and not timm.is_model_pretrained(bare):
        raise UserError(
            f"timm has no pretrained weights for {bare}",
            "--weights FILE or --weights none",
            "pass one of the two",
        )
    if dropout is not None and not _has_dropout(bare):
        raise UserError(
            f"timm:{bare} has no dropout before its head, so --dropout {dropout} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )
    options = {"num_classes": num_classes, "drop_rate": dropout, "in_chans": in_channels}
    resized = image_size is not None and image_size != tuple(config.input_size[1:])

    def make(size: Size, **more: Any) -> nn.Module:
        # Only models with a fixed input (position embeddings, windows) take the size as an argument.
        fixed = {"img_size": size} if resized and config.fixed_input_size else {}
        return timm.create_model(bare, **options, **fixed, **more)

    size = image_size or tuple(config.input_size[1:])
    if resized:
        check_image_size(make, f"timm:{bare}", size, channels)
    module: Any = (
        fetch(lambda: make(size, pretrained=True), f"timm:{bare}", size) if pretrained else make(size)
    )
    return Created(
        module=module,
        head=_timm_head(module, bare),
        preprocessing=_timm_preprocessing(module, size, channels),
        licence=module.pretrained_cfg.get("license") if pretrained else None,
        channels_last=is_convolutional(module),
        classes=_imagenet_classes(module) if pretrained and num_classes is None else None,
        origin=_origin(module) if pretrained else None,
    )


def _timm_head(module: Any, bare: str) -> str:
    classifier = module.get_classifier()
    path = next((path for path, m in module.named_modules() if m is classifier), None)
    # Models made for distillation give a tuple of two classifiers, a few others a list or none.
    named = module.pretrained_cfg.get("classifier")
    if path is None or not isinstance(classifier, (nn.Linear, nn.Conv2d)) or isinstance(named, tuple):
        raise UserError(
            f"timm:{bare} has not one linear classifier but {type(classifier).__name__} ({named})",
            "a model whose classifier is one layer",
            "choose its plain variant (for example deit_tiny_patch16_224, not deit_tiny_distilled_...)",
        )
    return path


def _timm_preprocessing(module: nn.Module, size: Size, channels: int) -> Preprocessing:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if len(mean) != channels:
        # Grey or multi-band stems were made from RGB ones: the average stands for every channel.
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Preprocessing(size, mean, std, float(config["crop_pct"]))


def _imagenet_classes(module: nn.Module) -> tuple[str, ...] | None:
    """WordNet ids (`n01440764`), which are also the folder names of ImageNet and its subsets."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _origin(module: nn.Module) -> str:
    config: Any = module.pretrained_cfg
    return config.get("hf_hub_id") or config.get("url") or config.get("file") or "timm"


def _has_dropout(bare: str) -> bool:
    """Whether the rate arrives anywhere: some timm models refuse `drop_rate`, some swallow it."""
    try:
        with torch.device("meta"):
            module = import_timm().create_model(bare, drop_rate=_PROBE_DROPOUT, num_classes=2)
    except TypeError:
        return False
    return any(
        _PROBE_DROPOUT in (getattr(m, "p", None), getattr(m, "drop_rate", None)) for m in module.modules()
    )
