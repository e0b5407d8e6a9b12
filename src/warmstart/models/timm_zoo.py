"""timm's models by name. timm is imported inside functions because it costs seconds."""

from __future__ import annotations

from typing import Any

from torch import nn

from warmstart.errors import UserError
from warmstart.models.created import Created, Outline, Wanted, is_convolutional, shapes_of
from warmstart.models.download import fetch
from warmstart.models.sizes import Size, check_image_size
from warmstart.models.torchvision_zoo import torchvision_mismatch
from warmstart.models.without_values import without_values
from warmstart.records import Preprocessing

_PROBE_DROPOUT = 0.123


def import_timm() -> Any:
    """The timm package, or a UserError that explains the one import failure users really meet."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        if "torchvision" not in str(error):
            raise
        raise torchvision_mismatch(error) from error
    return timm


def in_timm(name: str) -> bool:
    arch, _, tag = name.partition(".")
    timm = import_timm()
    return bool(timm.is_model(arch)) and (not tag or name in timm.list_pretrained(f"{arch}.*"))


def timm_groups(module: Any) -> list[list[str]] | None:
    """Parameter names by timm's own layer groups, stem to head; shared parameters are named once.

    None: the model states no groups as coarse as its stages and in their order.
    """
    matcher = getattr(module, "group_matcher", None)
    # CaiT folds its last blocks into earlier ones.
    if matcher is None or hasattr(module, "blocks_token_only"):
        return None
    from timm.models import group_parameters

    try:
        groups = group_parameters(module, matcher(coarse=True))
    except AssertionError:  # RDNet's way to say so
        return None
    return [groups[index] for index in sorted(groups)]


def outline_timm(bare: str) -> Outline:
    with without_values():
        # Two classes: models published without a classifier would otherwise come without one.
        module = import_timm().create_model(bare, pretrained=False, num_classes=2)
    config = module.pretrained_cfg
    path, first = next(((p, m) for p, m in module.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    # A stem may fold pixels into channels before its first convolution (TResNet).
    direct = first is not None and first.in_channels == config["input_size"][0]
    return Outline(
        _timm_head(module, bare),
        path if direct else None,
        bool(config.get("fixed_input_size")),
        shapes_of(module),
        tuple(config["input_size"][1:]),
    )


def create_timm(bare: str, wanted: Wanted) -> Created:
    timm = import_timm()
    config = timm.get_pretrained_cfg(bare)
    channels = wanted.in_channels or config.input_size[0]
    if wanted.pretrained and not timm.is_model_pretrained(bare):
        raise UserError(
            f"timm has no pretrained weights for {bare}",
            "--weights FILE or --weights none",
            "pass one of the two",
        )
    if wanted.dropout is not None and not _has_dropout(bare):
        raise UserError(
            f"timm:{bare} has no dropout before its head, so --dropout {wanted.dropout} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )
    # Self-supervised backbones come without a classifier: one output stands where fit_head puts a new one.
    is_headless = wanted.num_classes is None and not config.num_classes
    num_outputs = 1 if is_headless else wanted.num_classes
    options = {"num_classes": num_outputs, "drop_rate": wanted.dropout, "in_chans": wanted.in_channels}
    resized = wanted.image_size is not None and wanted.image_size != tuple(config.input_size[1:])

    def make(size: Size, **more: Any) -> nn.Module:
        # Only models with a fixed input (position embeddings, windows) take the size as an argument.
        fixed = {"img_size": size} if resized and config.fixed_input_size else {}
        return timm.create_model(bare, **options, **fixed, **more)

    size = wanted.image_size or tuple(config.input_size[1:])
    if resized and not wanted.runs_there:
        check_image_size(make, f"timm:{bare}", size, channels)
    module: Any = (
        fetch(lambda: make(size, pretrained=True), f"timm:{bare}", size) if wanted.pretrained else make(size)
    )
    names = _imagenet_classes(module) if wanted.pretrained and not wanted.num_classes else None
    return Created(
        module=module,
        head=_timm_head(module, bare),
        preprocessing=_timm_preprocessing(module, size, channels),
        licence=module.pretrained_cfg.get("license") if wanted.pretrained else None,
        channels_last=is_convolutional(module),
        classes=() if is_headless else names,
        origin=_origin(module) if wanted.pretrained else None,
    )


def _timm_head(module: Any, bare: str) -> str:
    classifier, named = module.get_classifier(), module.pretrained_cfg.get("classifier")
    if isinstance(named, str) and not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        # A classifier of several layers (MetaFormer's MlpHead): timm names its last one.
        classifier = module.get_submodule(named)
    path = next((path for path, m in module.named_modules() if m is classifier), None)
    # Models made for distillation give a tuple of two classifiers, a few others a list or none.
    if path is None or not isinstance(classifier, (nn.Linear, nn.Conv2d)) or isinstance(named, tuple):
        heads = f"{len(named)} classifiers ({', '.join(named)})" if isinstance(named, tuple) else named
        raise UserError(
            f"timm:{bare} has not one linear classifier but {heads or type(classifier).__name__}",
            "a model whose classifier is one layer",
            "choose a model without a second classifier for distillation "
            "(for example deit_tiny_patch16_224 or deit3_small_patch16_224)",
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
        with without_values():
            module = import_timm().create_model(bare, drop_rate=_PROBE_DROPOUT, num_classes=2)
    except TypeError:
        return False
    return any(
        _PROBE_DROPOUT in (getattr(m, "p", None), getattr(m, "drop_rate", None)) for m in module.modules()
    )
