"""Image models of Hugging Face transformers: `hf:FOLDER`, as save_pretrained writes it, or `hf:OWNER/NAME` of the hub.

The package is an optional extra, and imported inside functions because it costs seconds. What a folder's
config.json says travels in the file of a trained model, so that the model is made again without the folder.
Shapes: N images, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.created import Created, Outline, Wanted, check_in_channels, is_convolutional, shapes_of
from warmstart.models.download import fetch, hub_answers
from warmstart.models.hf_folder import CONFIG, classes_in_config, read_config
from warmstart.models.hf_package import import_transformers, quiet
from warmstart.models.hf_processor import preprocessing_of
from warmstart.models.image_text.create import (
    HEAD,
    create_image_text,
    is_image_text,
    left_out,
    outline_module,
)
from warmstart.models.image_text.model import ImageTower
from warmstart.models.image_text.prompts import split_head, with_head
from warmstart.models.sizes import Size, check_image_size, first_line
from warmstart.models.without_values import without_values
from warmstart.records import Preprocessing

_DROPOUTS = ("classifier_dropout_prob", "hidden_dropout_prob")  # the first that a config has is set
_SEGMENTERS = {"segformer": "decode_head.classifier"}  # model type -> its last layer
_NUM_OUTLINES = 32
_CONFIGS: dict[str, str] = {}  # by name, from files of trained models


class ImageBackbone(nn.Module):
    """A backbone that transformers has no classifier for (DINOv3): (N, C, H, W) -> logits (N, K)."""

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x).pooler_output)


def check_hf(bare: str) -> str:
    """The folder as an absolute path, or OWNER/NAME of the hub; UserError for anything else."""
    if bare in _CONFIGS:
        return bare
    bare, head = split_head(bare)
    folder = Path(bare).expanduser()
    if (folder / CONFIG).is_file():
        return with_head(str(folder.resolve()), head)
    if folder.is_dir() or bare.startswith((".", "/", "~")) or bare.count("/") != 1:
        found = (
            listing(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
        )
        raise UserError(
            f"hf:{bare} is no folder with a {CONFIG} ({found or 'it is empty'})",
            "a folder that save_pretrained wrote, or OWNER/NAME of a model on the hub",
            "look at the path",
        )
    import_transformers()
    return with_head(bare, head)


def remember_config(bare: str, text: str) -> None:
    """Take the config that the file of a trained model carries, for the rest of this process."""
    _CONFIGS[bare] = text


def config_text(module: Any) -> str:
    """The config of a model made here, as JSON, for the file of its weights."""
    if isinstance(module, ImageTower):
        return module.description
    text: str = getattr(module, "backbone", module).config.to_json_string()
    return text


def has_text_tower(bare: str) -> bool:
    """Whether hf:`bare` is a CLIP or SigLIP, of which models/image_text/ makes the module."""
    return is_image_text(_config(bare), is_saved=bare in _CONFIGS)


def create_hf(bare: str, wanted: Wanted) -> Created:
    """Build hf:`bare` as `zoo.create` promises; pretrained weights are the folder's or the hub's."""
    name, config = f"hf:{bare}", _config(bare)
    own, notes = _preprocessing(bare, config)
    check_in_channels(name, wanted, own.num_channels)
    if is_image_text(config, is_saved=bare in _CONFIGS):
        size, (place, _) = wanted.image_size or own.image_size, split_head(bare)
        if not wanted.runs_there:  # without texts
            check_image_size(lambda _: outline_module(place, config), name, size, own.num_channels)
        return create_image_text(bare, config, wanted, own, notes)
    if wanted.dropout is not None:
        config = _with_dropout(config, name, wanted.dropout)
    size = wanted.image_size or own.image_size
    if not wanted.runs_there:
        check_image_size(lambda _: _make(config, name, 2), name, size, own.num_channels)
    classes, told = classes_in_config(config)
    if wanted.pretrained:
        module, has_head = _pretrained(bare, config, size)
        classes, notes = (classes, (*notes, *told)) if has_head else ((), notes)
    else:
        module, classes = _make(config, name, wanted.num_classes or len(config.get("id2label", "12"))), None
    return Created(
        module=module,
        head=_head(module, name),
        preprocessing=replace(own, image_size=size),
        licence=None,
        channels_last=is_convolutional(module),
        classes=classes,
        origin=bare if wanted.pretrained else None,
        notes=notes,
        segments=_is_segmenter(config),
    )


def outline_hf(bare: str) -> Outline:
    config = _config(bare)
    return _outline(bare, json.dumps(config), _preprocessing(bare, config)[0].image_size)


@lru_cache(_NUM_OUTLINES)
def _outline(bare: str, text: str, size: Size) -> Outline:
    config = json.loads(text)
    is_text = is_image_text(config, is_saved=bare in _CONFIGS)
    with without_values():
        module = outline_module(bare, config) if is_text else _make(config, f"hf:{bare}", 2)
    first = next((path for path, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    head = HEAD if is_text else _head(module, f"hf:{bare}")
    beside = left_out(split_head(bare)[1]) if is_text else ()
    return Outline(
        head, first, False, shapes_of(module), size, segments=_is_segmenter(config), training_only=beside
    )


def _config(bare: str) -> dict[str, Any]:
    """UserError: what it says is not an image model of transformers."""
    place, _ = split_head(bare)
    if bare in _CONFIGS:
        config = json.loads(_CONFIGS[bare])
    elif (file := Path(place) / CONFIG).is_file():
        config = read_config(file)
    else:
        config = _from_hub(place)
    if "architecture" in config:
        raise UserError(
            f"hf:{bare} holds a model of timm ({config['architecture']})",
            "a model of transformers",
            f"--weights {bare}" if Path(bare).is_dir() else f"--model timm:{config['architecture']}",
        )
    if (
        config.get("model_type")
        not in import_transformers().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    ):
        raise UserError(
            f"hf:{bare} is of the type {config.get('model_type')!r}, which transformers does not have itself",
            "a model whose code is in transformers (code from the hub is never run)",
            "a newer transformers, or pass the model as an nn.Module: warmstart.finetune(module, data)",
        )
    return config


def _from_hub(bare: str) -> dict[str, Any]:
    config: dict[str, Any] = {}

    def ask() -> nn.Module:
        found = import_transformers().PretrainedConfig.get_config_dict(
            bare, local_files_only=not hub_answers()
        )
        config.update(found[0])
        return nn.Identity()

    fetch(ask, f"hf:{bare}", (0, 0))
    return config


def _is_segmenter(config: dict[str, Any]) -> bool:
    return any("SemanticSegmentation" in name for name in config.get("architectures") or ())


def _kinds(config: dict[str, Any], num_labels: int) -> tuple[Any, Any]:
    """(config object, class to make the model with) of transformers; AutoModel where there is no classifier."""
    transformers = import_transformers()
    made = transformers.AutoConfig.for_model(**config)
    made.num_labels = num_labels
    if _is_segmenter(config):
        return made, transformers.AutoModelForSemanticSegmentation
    has_classifier = type(made) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    return made, transformers.AutoModelForImageClassification if has_classifier else transformers.AutoModel


def _make(config: dict[str, Any], name: str, num_labels: int) -> nn.Module:
    made, kind = _kinds(config, num_labels)
    try:
        module = kind.from_config(made)
    except Exception as error:  # whatever a config can be wrong in
        raise UserError(
            f"transformers cannot build {name}: {first_line(error)}",
            "the config of an image model",
            "look at its config.json",
        ) from error
    return _plain(module.float(), made, kind, num_labels)


def _plain(module: Any, made: Any, kind: Any, num_labels: int) -> nn.Module:
    """A module that gives logits."""
    if kind.__name__ == "AutoModel":
        widths = getattr(made, "hidden_sizes", None) or [made.hidden_size]
        return ImageBackbone(module, widths[-1], num_labels)
    module.register_forward_hook(_only_logits)
    plain: nn.Module = module
    return plain


def _only_logits(module: nn.Module, args: Any, outputs: Any) -> Tensor:
    logits: Tensor = outputs.logits
    return logits


def _pretrained(bare: str, config: dict[str, Any], size: Size) -> tuple[nn.Module, bool]:
    """The model with its weights, and whether they hold its classifier."""
    name = f"hf:{bare}"
    num_labels = len(config.get("id2label", "12"))
    made, kind = _kinds(config, num_labels)
    missing: list[str] = []

    def load() -> nn.Module:
        module, info = kind.from_pretrained(bare, config=made, output_loading_info=True)
        missing.extend(info["missing_keys"])
        return _plain(module.float(), made, kind, num_labels)

    with quiet():
        module = fetch(load, name, size)
    head = _head(module, name)
    if left := [key for key in missing if not key.startswith(f"{head}.")]:
        raise UserError(
            f"{name} lacks {len(left)} tensors of its {type(module).__name__}: {listing(sorted(left), 3)}",
            "the weights of the whole model, with or without its last layer",
            "--weights none for random initialisation",
        )
    return module, not missing and kind.__name__ != "AutoModel"


def _preprocessing(bare: str, config: dict[str, Any]) -> tuple[Preprocessing, tuple[str, ...]]:
    place, _ = split_head(bare)
    return preprocessing_of(place, config, _is_segmenter(config), is_saved=bare in _CONFIGS)


def _head(module: nn.Module, name: str) -> str:
    """The classifier: a linear layer, or a segmentation model's last convolution."""
    kind = getattr(getattr(module, "config", None), "model_type", "")
    if kind in _SEGMENTERS and hasattr(module, "decode_head"):
        return _SEGMENTERS[kind]
    layers = [path for path, m in module.named_modules() if isinstance(m, nn.Linear) and "classifier" in path]
    if len(layers) != 1:
        raise UserError(
            f"{name} has not one linear classifier but {len(layers)}",
            "an image classifier, an image backbone, or SegFormer for segmentation",
            "pass the model as an nn.Module whose forward returns its logits: warmstart.finetune(module, data)",
        )
    return layers[0]


def _with_dropout(config: dict[str, Any], name: str, rate: float) -> dict[str, Any]:
    made, _ = _kinds(config, 2)
    key = next((key for key in _DROPOUTS if hasattr(made, key)), None)
    if key is None:
        raise UserError(
            f"{name} has no dropout before its head, so --dropout {rate} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )
    return config | {key: rate}
