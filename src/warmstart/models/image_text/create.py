"""CLIP and SigLIP of transformers -> our modules, by the head that is asked for.

Shapes: K classes, P prompts, D numbers of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.created import Created, TextPart, Wanted
from warmstart.models.download import fetch
from warmstart.models.hf_package import import_transformers, quiet
from warmstart.models.image_text.model import (
    ContrastiveModel,
    ImageClassifier,
    ImageTower,
    TextClassifier,
    class_means,
    embed_texts,
)
from warmstart.models.image_text.processor import Tokens, processor_files, tokenise
from warmstart.models.image_text.prompts import (
    CONTRASTIVE,
    LINEAR,
    ZERO_SHOT,
    ClassTexts,
    split_head,
)
from warmstart.records import Preprocessing

HEAD = "classifier"
_MARK = "warmstart"  # entry of a config that was saved here: the head, and the texts that it is made of
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Family:
    """Names of transformers' classes; whether embeddings are projected, and all texts padded to one length."""

    whole: str
    vision: str
    projects: bool
    pads: bool
    loss: str  # that it was trained with, by tasks/objectives.py


_FAMILIES = {
    "clip": Family("CLIPModel", "CLIPVisionModel", True, False, "softmax"),
    "siglip": Family("SiglipModel", "SiglipVisionModel", False, True, "sigmoid"),
}
_VISION_ALONE = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}


def is_image_text(config: Mapping[str, Any], is_saved: bool) -> bool:
    """Whether a config is of a CLIP or SigLIP that is no image classifier of transformers already.

    `is_saved`: it comes with the weights of a model that was trained here, which say so themselves.
    """
    classifies = any("ForImageClassification" in name for name in config.get("architectures") or ())
    known = config.get("model_type") in (*_FAMILIES, *_VISION_ALONE)
    return known and (_MARK in config if is_saved else not classifies)


def create_image_text(
    bare: str, config: dict[str, Any], wanted: Wanted, own: Preprocessing, notes: tuple[str, ...]
) -> Created:
    """As `zoo.create` promises; `own` is the preprocessing of the folder. Pretrained weights are the folder's."""
    name, (place, head) = f"hf:{bare}", split_head(bare)
    family = _family(config, name, head)
    if wanted.dropout is not None:
        raise UserError(
            f"{name} has no dropout before its head, so --dropout {wanted.dropout} would do nothing",
            "no --dropout for this model",
            "leave --dropout out, or choose another --model",
        )
    texts = wanted.texts
    home = Path(place) if texts is None or texts.processor is None else texts.processor
    # What comes with a file of weights asks no hub for the rest.
    files = processor_files(home) if wanted.pretrained or home.is_dir() else {}
    source = _Source(name, place, config, family, files)
    mark: dict[str, Any] = {"head": head} | dict(config.get(_MARK, {}))
    by_text: str | None = None
    module: ImageTower
    if head != CONTRASTIVE and not wanted.pretrained:
        module = _empty(source, head, wanted.num_classes or 2)
    elif head == LINEAR:
        vision = _bare(_tower(source, family.vision, pretrained=True))
        classifier = nn.Linear(vision.config.hidden_size, wanted.num_classes or 2)
        module = ImageClassifier(vision, None, classifier, normalises=False)
    else:
        tokens, owners, mark, by_text = _prompts(source, texts, mark)
        whole = _tower(source, family.whole, wanted.pretrained)
        module = (_zero_shot if head == ZERO_SHOT else _contrastive)(whole, tokens, owners)
    module.description = json.dumps({**config, _MARK: mark})
    loss = family.loss if head == CONTRASTIVE else None
    prompts = {name: tuple(found) for name, found in mark.get("prompts", {}).items()}
    part = TextPart(head, files, loss, by_text, source.read, prompts)
    classes = texts.classes if by_text is not None and texts is not None else ()
    return Created(
        module=module,
        head=HEAD,
        preprocessing=replace(own, image_size=wanted.image_size or own.image_size),
        licence=None,
        channels_last=False,
        classes=classes if wanted.pretrained or by_text is not None else None,
        origin=place if wanted.pretrained else None,
        training_only=left_out(head),
        notes=notes,
        text=part,
    )


def outline_module(bare: str, config: dict[str, Any]) -> nn.Module:
    """The module with two classes and without texts, on the current default device."""
    name, (place, head) = f"hf:{bare}", split_head(bare)
    family = _family(config, name, head)
    source = _Source(name, place, config, family, {})
    return _towers(_empty_tower(source, family.whole)) if head == CONTRASTIVE else _empty(source, head, 2)


@dataclass(frozen=True)
class _Source:
    """Where a model comes from; `files` are those of its tokenizer and image processor."""

    name: str
    place: str
    config: dict[str, Any]
    family: Family
    files: Mapping[str, bytes]

    @property
    def plain(self) -> dict[str, Any]:
        """The config as transformers writes it."""
        return {key: value for key, value in self.config.items() if key != _MARK}

    @property
    def made(self) -> Any:
        return import_transformers().AutoConfig.for_model(**self.plain)

    def read(self, texts: Sequence[str]) -> Tokens:
        return tokenise(texts, self.files, self.plain, self.name, self.family.pads)


def _family(config: Mapping[str, Any], name: str, head: str) -> Family:
    kind = config["model_type"]
    if kind in _VISION_ALONE and head != LINEAR:
        raise UserError(
            f"{name} holds an image tower alone ({kind}), and --text.head {head} needs the text tower",
            "a folder of the whole model",
            "--text.head linear",
        )
    return _FAMILIES[_VISION_ALONE.get(kind, kind)]


def _empty(source: _Source, head: str, num_classes: int) -> ImageClassifier:
    """A classifier with random weights; what a file of a trained one fits."""
    vision, projection = _bare(_empty_tower(source, source.family.vision)), None
    width = vision.config.hidden_size
    if head == ZERO_SHOT and source.family.projects:
        projection = nn.Linear(width, source.made.projection_dim, bias=False)
        width = projection.out_features
    return ImageClassifier(vision, projection, nn.Linear(width, num_classes), normalises=head == ZERO_SHOT)


def _bare(tower: Any) -> Any:
    """The tower itself: transformers 4 has it inside of the class of that name."""
    return getattr(tower, "vision_model", tower)


def left_out(head: str) -> tuple[str, ...]:
    """Prefixes of what a file of the whole model has, and the module of this head does not."""
    beside = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
    return {LINEAR: ("visual_projection.", *beside), ZERO_SHOT: beside, CONTRASTIVE: ()}[head]


def _empty_tower(source: _Source, kind: str) -> Any:
    made = source.made
    config = made if kind == source.family.whole else getattr(made, "vision_config", made)
    try:
        return getattr(import_transformers(), kind)._from_config(config).float()
    except Exception as error:  # whatever a config can be wrong in
        raise UserError(
            f"transformers cannot build {source.name}: {' '.join(str(error).split())}",
            "the config of an image-text model",
            "look at its config.json",
        ) from error


def _tower(source: _Source, kind: str, pretrained: bool) -> Any:
    """One tower or the whole model, with its weights or random ones."""
    if not pretrained:
        return _empty_tower(source, kind)
    made, missing = source.made, []
    config = made if kind == source.family.whole else getattr(made, "vision_config", made)

    def load() -> nn.Module:
        loader = getattr(import_transformers(), kind).from_pretrained
        module, info = loader(source.place, config=config, output_loading_info=True)
        missing.extend(info["missing_keys"])
        plain: nn.Module = module.float()
        return plain

    side = getattr(made, "vision_config", made).image_size
    with quiet():
        module = fetch(load, source.name, (side, side))
    if missing:
        raise UserError(
            f"{source.name} lacks {len(missing)} tensors of {kind}: {listing(sorted(missing), 3)}",
            "the weights of the whole model" if kind == source.family.whole else "those of its image tower",
            "--text.head linear needs the image tower alone; --weights none for random initialisation",
        )
    return module


def _prompts(
    source: _Source, texts: ClassTexts | None, mark: dict[str, Any]
) -> tuple[Tokens, list[int], dict[str, Any], str]:
    """Tokens of all prompts, the class of each, what the model's config says of them, and all in a few words."""
    if texts is None:
        raise UserError(
            f"{source.name} answers by texts of classes, and no classes are named",
            "data with classes: `warmstart evaluate hf:FOLDER --zero-shot --data DATA`, or a run",
        )
    stated = {name: tuple(found) for name, found in mark.get("prompts", {}).items()}
    prompts = stated if texts.prompts is None else dict(texts.prompts)
    if list(prompts.items()) == list(stated.items()) and "tokens" in mark:  # in the same order too
        tokens = Tokens.from_json(mark["tokens"])
    else:
        every = [text for name in texts.classes for text in prompts[name]]
        tokens = source.read(every)
    owners = [number for number, name in enumerate(texts.classes) for _ in prompts[name]]
    mark = {"head": mark["head"], "prompts": prompts}
    mark |= {"tokens": tokens.to_json()} if mark["head"] == CONTRASTIVE else {}
    example = prompts[texts.classes[0]][0]
    return tokens, owners, mark, f"embeddings of {len(owners)} texts such as {example!r}"


def _zero_shot(whole: Any, tokens: Tokens, owners: list[int]) -> ImageClassifier:
    """The image tower with the text embeddings, scaled, as rows of the classifier; the text tower is done with."""
    rows = _rows(whole, tokens, owners) * whole.logit_scale.detach().exp()
    classifier = nn.Linear(rows.shape[1], rows.shape[0])
    bias = getattr(whole, "logit_bias", None)
    with torch.no_grad():
        classifier.weight.copy_(rows)
        classifier.bias.copy_(torch.zeros(()) if bias is None else bias.reshape(()))
    return ImageClassifier(
        whole.vision_model, getattr(whole, "visual_projection", None), classifier, normalises=True
    )


@torch.no_grad()
def _rows(whole: Any, tokens: Tokens, owners: list[int]) -> Tensor:
    """(K, D) of length 1."""
    text, projection = whole.text_model.eval(), getattr(whole, "text_projection", None)
    ids = torch.tensor(tokens.ids).split(_TEXTS_AT_ONCE)
    masks = [None] * len(ids) if tokens.mask is None else torch.tensor(tokens.mask).split(_TEXTS_AT_ONCE)
    found = [embed_texts(text, projection, *pair) for pair in zip(ids, masks, strict=True)]
    return class_means(torch.cat(found), torch.tensor(owners), max(owners) + 1)


def _contrastive(whole: Any, tokens: Tokens, owners: list[int]) -> ContrastiveModel:
    module = _towers(whole)
    module.classifier.set_prompts(tokens, owners)
    return module


def _towers(whole: Any) -> ContrastiveModel:
    return ContrastiveModel(
        whole.vision_model,
        getattr(whole, "visual_projection", None),
        whole.text_model,
        getattr(whole, "text_projection", None),
        TextClassifier(whole.logit_scale, getattr(whole, "logit_bias", None)),
    )
