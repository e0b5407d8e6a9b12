"""Settings -> a model ready to be planned for: built, loaded, its classifier fitted to the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.config.schema import ModelConfig, TaskConfig
from warmstart.errors import UserError
from warmstart.models.adapters.base import base_of, on_base
from warmstart.models.adapters.four_bit import check_four_bit, put_in_four_bits
from warmstart.models.adapters.inject import inject, load_adapters, merged
from warmstart.models.answers import check_random, own_classes, own_decision, own_margin, own_thresholds
from warmstart.models.blocks import find_blocks
from warmstart.models.create_for import create_for, resized
from warmstart.models.created import Created, TextPart, with_stated
from warmstart.models.fitting import fit_names, fit_values, with_decoder
from warmstart.models.heads import HeadChange, fit_head, fit_kind, num_outputs
from warmstart.models.hf_zoo import config_text
from warmstart.models.image_text.choose_head import check_margin, named_head, texts_for
from warmstart.models.image_text.prompts import Texts
from warmstart.models.margin import resolve_margin
from warmstart.models.metadata import write_metadata
from warmstart.models.naming import resolve_name
from warmstart.models.task_files import alone, find_task, nearest_task
from warmstart.models.weights import WeightsFile, load_into, read_weights
from warmstart.models.zoo import outline
from warmstart.records import Base, Block, Decision, Lora, Margin, Preprocessing, Recipe, Tasks, Thresholds

_DEFAULT_TASK, _NO_TEXTS = TaskConfig(), Texts()
_PREPROCESSING_KEYS = frozenset({"mean", "std", "image_size", "crop_pct"})


@dataclass(frozen=True)
class BuiltModel:
    """A model with everything that the rest of a run must know about it."""

    module: nn.Module
    name: str  # with its zoo, `timm:resnet18`
    blocks: tuple[Block, ...]
    head: str  # dotted path of the classifier
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    channels_last: bool
    licence: str | None
    head_change: HeadChange
    source: dict[str, str | None]  # kind (random, pretrained, file), path, sha256
    names_known: bool = True  # False: `classes` are just the numbers of the outputs
    notes: tuple[str, ...] = ()  # what was done to a file's contents to make them fit
    multi_label: bool = False  # each output is a yes or no of its own, by the file or the training data
    segments: bool = False  # by its architecture: outputs are (N, K, H, W), scores of every pixel
    margin: Margin | None = None  # its classifier is a margin head
    decision: Decision | None = None  # of a binary classifier, by the file or the run
    thresholds: Thresholds | None = None  # of a multi-label one, by the file
    lora: Lora | None = None  # its low-rank adapters
    base: Base | None = None  # what these were trained on
    text: TextPart | None = None  # of an image-text model
    tasks: Tasks | None = None  # whose heads it has, where these are several (task_heads.py)
    task: str | None = None  # the one that it is seen as
    recipe: Recipe | None = None  # what was made of the model of this name
    native: bool = True  # its file takes images of the input's size as they are

    def move_to(self, device: torch.device) -> None:
        """Move the module, in the memory layout that it computes fastest in."""
        if self.lora is not None and self.lora.bits is not None:
            check_four_bit(device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.module.to(device=device, memory_format=layout)  # type: ignore[call-overload]


# What a built model is asked: which adapters it shall have, and what to say of that.
ChooseLora = Callable[[BuiltModel], tuple[Lora | None, tuple[str, ...]]]


def no_adapters(_: BuiltModel) -> tuple[None, tuple[str, ...]]:
    return None, ()


def build(
    settings: ModelConfig | WeightsFile | tuple[ModelConfig, WeightsFile],
    overrides: Mapping[str, Any],
    classes: tuple[str, ...] | None,
    seed: int,
    task: TaskConfig = _DEFAULT_TASK,
    choose: ChooseLora | None = None,
    text: Texts = _NO_TEXTS,
) -> BuiltModel:
    """Build, load and fit a model for `classes`. Equal arguments give equal weights, to the bit.

    `classes` None keeps the classifier of a file as it is, with the file's names, or numbers for them.
    `overrides` are the mean, std, image_size and crop_pct that the user gave (None: not given); they win over what a
    file of weights states, which wins over the model's own. `task` says whether the classifier is a margin head; by
    default it is what the file has. `choose` says which low-rank adapters the model gets; by default they are the
    file's. A file's own go on where they are the same, and are merged into its weights where they are not. `text` says
    what class names are to an image-text model. A file that was read before stands for its settings, or beside them.
    UserError: whatever `create`, `read_weights`, `load_into` and `fit_head` find, no or two models named.
    """
    assert overrides.keys() <= _PREPROCESSING_KEYS, f"not a preprocessing setting in {set(overrides)}"
    settings, file, name = _opened(settings, text, classes)
    random = settings.weights == "none"
    kept = file if classes is None else None  # with the answers of its classifier
    names_known = classes is not None or file is None or file.classes is not None
    if classes is None:
        classes = own_classes(file, name)
    stated = {**(file.preprocessing if file else {}), **{k: v for k, v in overrides.items() if v is not None}}
    outputs = len(classes) if random else None, texts_for(name, text, classes, file)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would seed CUDA too
        created = create_for(name, settings, file, outputs, stated)
    margin, notes = check_margin(name, resolve_margin(task, own_margin(created, file))), created.notes
    if file is not None:
        change, source, loaded = _load(created, file, classes, name, (margin, seed))
        notes = (*file.notes, *notes, *loaded, *resized(created, file, name, stated))
    else:
        change, source = _fit(created, classes, name, (margin, seed), random)
    built = BuiltModel(
        module=created.module,
        name=name,
        blocks=find_blocks(created.module, created.head_block or created.head),
        head=created.head,
        preprocessing=with_stated(created.preprocessing, stated, name),
        classes=classes,
        channels_last=created.channels_last,
        licence=created.licence,
        head_change=change,
        source=source,
        names_known=names_known,
        multi_label=kept is not None and kept.multi_label,
        segments=created.segments,
        margin=margin,
        decision=None if kept is None else own_decision(kept, classes),
        thresholds=None if kept is None else own_thresholds(kept, classes),
        text=created.text,
        notes=notes,
        recipe=None if file is None else file.recipe,
        native=file is None or file.native,
    )
    return _adapted(built, file, choose, seed)


def _opened(
    settings: ModelConfig | WeightsFile | tuple[ModelConfig, WeightsFile],
    text: Texts,
    classes: tuple[str, ...] | None,
) -> tuple[ModelConfig, WeightsFile | None, str]:
    """The settings, the file that they name, whole and under the model's own names, and the model's name.

    Of a file of several tasks it has the head of the one with most of the `classes`.
    """
    file: WeightsFile | None = None
    if isinstance(settings, tuple):
        settings, file = settings
    elif isinstance(settings, WeightsFile):
        file = settings
        settings = ModelConfig(weights=str(file.path))
    check_random(settings)
    is_random = settings.weights == "none"
    if file is None and not is_random and settings.weights is not None:
        file = read_weights(settings.weights)
    if file is not None and file.tasks is not None:
        task = (
            find_task(file.tasks, None, str(file.path)).name
            if classes is None
            else nearest_task(file, classes)
        )
        file = alone(file, task)
    if file is not None and file.adapter is not None:
        file = on_base(file, settings.name, partial(build, choose=no_adapters))
    name = named_head(resolve_name(settings, file), text.settings, file, is_random)
    return settings, None if file is None else fit_names(file, outline(name, file.recipe), name), name


def _adapted(built: BuiltModel, file: WeightsFile | None, choose: ChooseLora | None, seed: int) -> BuiltModel:
    """The model with its adapters: the file's own where the same are asked for, else fresh ones or none."""
    own = None if file is None else file.lora
    asked, notes = (own, ()) if choose is None else choose(built)
    goes_on = own is not None and asked is not None and asked.fits(own)
    if file is not None and own is not None and not goes_on:
        built.module.load_state_dict(merged({**built.module.state_dict(), **file.adapters}, own))
        into = "weights, dequantised from 4 bits" if own.bits is not None else "weights"
        notes = (f"merged the adapters of {len(own.targets)} layers into the {into}", *notes)
    elif own is not None and choose is not None:
        notes = (f"goes on with the adapters of {len(own.targets)} layers", *notes)
    if asked is not None:
        blocks = inject(built.module, built.blocks, asked, seed, built.head)
        base = file.base if file is not None and goes_on else base_of(built.source)
        if asked.bits is not None:
            codes = file.codes if file is not None and goes_on else {}
            blocks, told = put_in_four_bits(built.module, blocks, asked, codes)
            notes = (*notes, told)
        built = replace(built, blocks=blocks, lora=asked, base=base)
    if file is not None and goes_on:
        load_adapters(built.module, file.adapters, str(file.path))
    return replace(built, notes=(*built.notes, *notes))


def metadata_for(built: BuiltModel) -> dict[str, str]:
    """Metadata for the safetensors file of this model, from which `build` makes the same model again."""
    hf_config = config_text(built.module) if built.name.startswith("hf:") else None
    return write_metadata(
        built.name,
        built.classes,
        built.preprocessing,
        built.multi_label,
        hf_config,
        (
            *(built.margin, built.decision, built.thresholds),
            *(built.lora, built.base, built.tasks, built.recipe),
        ),
    )


def _fit(
    created: Created, classes: tuple[str, ...], name: str, wanted: tuple[Margin | None, int], random: bool
) -> tuple[HeadChange, dict[str, str | None]]:
    """Fit the classifier of a model that no file is loaded into; `wanted` is its margin and seed."""
    margin, seed = wanted
    if created.text is not None and created.text.by_text is not None:
        kind = "random" if random else "pretrained"
        source = {"kind": kind, "path": created.origin, "sha256": None}
        return HeadChange("kept", classes, (), created.text.by_text), source
    if random:
        fit_kind(created.module, created.head, margin, seed)
        change = HeadChange("new", (), classes, "random initialisation")
        return change, {"kind": "random", "path": None, "sha256": None}
    lost = fit_kind(created.module, created.head, margin, seed)
    change = fit_head(created.module, created.head, () if lost else created.classes, classes, seed)
    kind = "object" if name.startswith("object:") else "pretrained"
    source = {"kind": kind, "path": created.origin, "sha256": None}
    return replace(change, reason=lost or change.reason), source


def _load(
    created: Created,
    file: WeightsFile,
    classes: tuple[str, ...],
    name: str,
    wanted: tuple[Margin | None, int],
) -> tuple[HeadChange, dict[str, str | None], tuple[str, ...]]:
    """Load the file, and fit the classifier to the classes; `wanted` is its margin and seed. The last are notes."""
    margin, seed = wanted
    by_text = created.text.by_text if created.text is not None else None
    if by_text is None:
        fit_kind(created.module, created.head, own_margin(created, file), seed)
    source: dict[str, str | None] = {"kind": "file", "path": str(file.path), "sha256": file.sha256}
    known = outline(name, file.recipe)
    state, adapted = fit_values(created, with_decoder(created, _needed(created, file), known), known)
    loaded = load_into(created.module, state, created.head, str(file.path), name)
    if by_text is not None:
        notes = (*_left_out(created, file), *adapted, *loaded.notes)
        return HeadChange("kept", classes, (), by_text), source, notes
    assert loaded.has_head == (f"{created.head}.weight" in file.state), "a classifier was lost on the way"
    notes = (*_left_out(created, file), *adapted, *loaded.notes)
    if loaded.has_head:
        num = num_outputs(created.module, created.head)
        if file.classes is not None and len(file.classes) != num:
            raise UserError(
                f"{file.path} names {len(file.classes)} classes, but its classifier has {num} outputs",
                "one name per output",
                "save the file again with all its class names, or without any",
            )
        lost = fit_kind(created.module, created.head, margin, seed, known.has_pair)
        change = fit_head(created.module, created.head, () if lost else file.classes, classes, seed)
        return replace(change, reason=lost or change.reason), source, notes
    # Names that no output of the file has: every row is drawn anew.
    fit_kind(created.module, created.head, margin, seed, known.has_pair)
    drawn = fit_head(created.module, created.head, (), classes, seed)
    return replace(drawn, reason="the file holds no classifier"), source, notes


def _needed(created: Created, file: WeightsFile) -> dict[str, Tensor]:
    """The file's tensors without those that serve training from scratch only."""
    beside = created.training_only
    return {key: tensor for key, tensor in file.state.items() if not beside or not key.startswith(beside)}


def _left_out(created: Created, file: WeightsFile) -> tuple[str, ...]:
    num = len(file.state) - len(_needed(created, file))
    what = "of the text tower" if created.text is not None else "of auxiliary classifiers"
    return (f"left out {num} tensors {what}",) if num else ()
