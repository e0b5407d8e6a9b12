"""A file's tensors -> tensors that a model can load: prefixes, heads, stems, position embeddings; all of it said."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models import gaps
from warmstart.models.created import Created, Outline, shapes_of
from warmstart.models.sizes import Size
from warmstart.models.unwrap import classes_note, stripped_note
from warmstart.models.weights import WeightsFile

_HEAD_NAMES = re.compile(
    r"(^|\.)(fc\w*|head\w*|classifier\w*|linear|last_linear|logits|output|out|cls)(\.|$)"
)
_RGB = 3


def fit_names(file: WeightsFile, outline: Outline, name: str) -> WeightsFile:
    """The file with its tensors under the model's names, as far as that is certain; UserError if two sets fit."""
    if (encoder := _encoder_alone(file, outline)) is not None:
        return encoder
    file = _own_prefixes(file, outline)
    state, notes = _without_prefix(file, outline, name)
    state, told = _head_in_place(state, outline)
    file = replace(file, state=state, notes=(*file.notes, *notes, *told))
    return _counted_classes(file, outline)


def _encoder_alone(file: WeightsFile, outline: Outline) -> WeightsFile | None:
    """The file with the tensors of a segmentation model's encoder only, if it has them all and no decoder."""
    if outline.encoder is None:
        return None
    backbone, start = gaps.backbone_of(outline), outline.encoder
    if any(key in file.state for key in backbone if not key.startswith(start)):
        return None
    for prefix in (start, ""):
        names = {key: prefix + key.removeprefix(start) for key in outline.shapes if key.startswith(start)}
        state = {key: file.state[name] for key, name in names.items() if name in file.state}
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        if all(gaps.same(shapes.get(key), backbone[key], key, outline) for key in names if key in backbone):
            notes = [f"the {len(state)} tensors of the encoder; the decoder starts at random"]
            if num_left := len(file.state) - len(state):
                notes.append(f"left out {num_left} tensors beside the encoder")
            return replace(file, state=state, classes=None, notes=(*file.notes, *notes))
    return None


def with_decoder(created: Created, state: dict[str, Tensor], outline: Outline) -> dict[str, Tensor]:
    """`state`, with the created model's own random decoder where it holds the encoder alone."""
    if outline.encoder is None or not all(key.startswith(outline.encoder) for key in state):
        return state
    own = created.module.state_dict()
    rest = {key for key in own if key not in state and not gaps.under(key, created.head)}
    return state | {key: own[key] for key in own if key in rest and not key.startswith(outline.encoder)}


def _own_prefixes(file: WeightsFile, outline: Outline) -> WeightsFile:
    """The file with those of the stripped prefixes put back that are of the model's own names."""
    starts = ["".join(file.prefixes[kept:]) for kept in range(len(file.prefixes), -1, -1)]
    start = max(starts, key=lambda start: sum(start + key in outline.shapes for key in file.state))
    if not start:
        return file
    own = file.prefixes[starts.index(start) * -1 :]
    undone = {stripped_note(prefix, len(file.state)) for prefix in own}
    notes = tuple(note for note in file.notes if note not in undone)
    state = {start + key: tensor for key, tensor in file.state.items()}
    return replace(file, state=state, notes=notes, prefixes=file.prefixes[: -len(own)])


def _counted_classes(file: WeightsFile, outline: Outline) -> WeightsFile:
    """The file without the class names of its wrapper, where the classifier has another number of outputs."""
    head, classes, key = outline.head, file.classes, file.classes_key
    rows = file.state.get(f"{head}.weight")
    if key is None or classes is None or rows is None or not rows.ndim:
        return file
    num = 2 if len(rows) == 1 and outline.has_pair else len(rows)
    if num == len(classes):
        return file
    ignored = f"{key!r} has {len(classes)} names, but the classifier {head!r} {num} outputs: ignored"
    taken = classes_note(len(classes), key)
    return replace(file, classes=None, notes=(*(note for note in file.notes if note != taken), ignored))


def image_size_in(state: Mapping[str, Tensor], outline: Outline) -> Size | None:
    """The square image that the file's position embeddings are for, in pixels; None where nothing tells."""
    key = next((key for key in outline.shapes if gaps.is_position(key)), None)
    stem, found = outline.stem_shape, state.get(key or "")
    if key is None or found is None or stem is None or outline.image_size is None or found.ndim != 3:
        return None
    patch, (height, width) = stem[-1], outline.image_size
    num_prefix = outline.shapes[key][1] - (height // patch) * (width // patch)
    side = math.isqrt(max(0, found.shape[1] - num_prefix))
    if num_prefix < 0 or not side or side * side != found.shape[1] - num_prefix:
        return None
    is_same = side * patch == height == width or found.shape == outline.shapes[key]
    return outline.image_size if is_same else (side * patch, side * patch)


def fit_values(
    created: Created, state: dict[str, Tensor], outline: Outline
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt values to the created model: the stem's channels, and what timm itself converts for this family."""
    state, notes = _channels(created.module, state, outline)
    family = type(created.module).__module__
    convert = getattr(sys.modules[family], "checkpoint_filter_fn", None)
    stem = state.get(f"{outline.first_conv}.weight")
    is_other_stem = stem is not None and tuple(stem.shape) != shapes_of(created.module).get(
        f"{outline.first_conv}.weight"
    )
    if _fits(created, state) or convert is None or not family.startswith("timm.") or is_other_stem:
        return state, notes  # timm would resample patches of another size too, which is another model
    heads = {key: tensor for key, tensor in state.items() if gaps.under(key, created.head)}
    # By the classifier's name some of these functions tell their authors' files from timm's.
    for given in (state, {key: tensor for key, tensor in state.items() if key not in heads}):
        converted = _try(convert, given, created.module)
        if isinstance(converted, dict) and _fits(created, converted | heads):
            return converted | heads, [*notes, *_told(state, converted | heads)]
    return state, notes  # `load_into` explains what does not fit


def _fits(created: Created, state: Mapping[str, Tensor]) -> bool:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    return not gaps.compare(shapes, shapes_of(created.module), created.head)[0]


def _told(state: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> list[str]:
    resampled = [k for k in converted if k in state and state[k].shape != converted[k].shape]
    renamed, num_less = [key for key in converted if key not in state], len(state) - len(converted)
    notes = [f"resampled {listing(resampled, 3)} to the model's grid, as timm does"] if resampled else []
    if renamed:
        notes.append(f"timm translated the names of {len(renamed)} tensors")
    return [*notes, f"timm left out {num_less} tensors"] if num_less > 0 else notes


def _try(convert: object, state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor] | Exception:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the speed of an interpolation, for one
            result: dict[str, Tensor] = convert(dict(state), module)  # type: ignore[operator]
        return {key: value for key, value in result.items() if isinstance(value, Tensor)}
    except Exception as error:  # written for files of its own family: others make it raise anything
        return error


def _without_prefix(file: WeightsFile, outline: Outline, name: str) -> tuple[dict[str, Tensor], list[str]]:
    state = file.state
    full = gaps.full_prefixes(file.shapes, outline)
    if not full:
        return _most_likely(file, outline), []
    plain = [prefix for prefix in full if not gaps.is_averaged(prefix)] or full
    if len(plain) > 1:
        raise UserError(
            f"{file.path} holds {name} {len(plain)} times: under {' and under '.join(map(repr, plain))}",
            "the weights of one model",
            f"save the ones you mean: torch.save({{k.removeprefix({plain[0]!r}): v for k, v in state.items() if "
            f"k.startswith({plain[0]!r})}}, 'weights.pt')",
        )
    chosen, twins = plain[0], [prefix for prefix in full if prefix != plain[0]]
    notes = [f"their EMA twin under {twin!r} was not taken" for twin in twins]
    rest = {k: t for k, t in state.items() if not any(k.startswith(twin) for twin in twins)}
    if not chosen:
        return (rest if twins else state), notes
    inside = {key.removeprefix(chosen): t for key, t in rest.items() if key.startswith(chosen)}
    others = {key: t for key, t in rest.items() if not key.startswith(chosen)}
    heads = {key: t for key, t in others.items() if _HEAD_NAMES.match(key) and key not in inside}
    has_head = any(gaps.under(key, outline.head) for key in inside)
    notes.append(f"stripped the prefix {chosen!r} from {len(inside)} names")
    if left := [key for key in others if has_head or key not in heads]:
        notes.append(f"left out {len(left)} tensors beside them: {listing(left, 5)}")
    return inside | ({} if has_head else heads), notes


def _most_likely(file: WeightsFile, outline: Outline) -> dict[str, Tensor]:
    """Without the prefix that most names of the backbone carry, so that what differs can be explained."""
    wanted = gaps.backbone_of(outline)
    best, most = "", sum(key in file.state for key in wanted)
    for prefix in gaps.prefixes(file.state, wanted):
        count = sum(prefix + key in file.state for key in wanted)
        if count > max(most, len(wanted) // 2):
            best, most = prefix, count
    if not best:
        return file.state
    return {key.removeprefix(best): t for key, t in file.state.items() if key.startswith(best)}


def _head_in_place(state: dict[str, Tensor], outline: Outline) -> tuple[dict[str, Tensor], list[str]]:
    """The classifier under the model's name, if it has the right width; one that cannot fit is left out."""
    head, wanted = outline.head, outline.shapes.get(f"{outline.head}.weight")
    if wanted is None:  # it classifies by texts
        return state, []
    own = state.get(f"{head}.weight")
    if own is not None and own.shape[1:] == wanted[1:]:
        return state, []
    extra = [k for k in state if k not in outline.shapes or gaps.under(k, head)]
    trunk = gaps.branches(gaps.backbone_of(outline), head)
    extra = [
        k for k in extra if gaps.under(k, head) or (_HEAD_NAMES.search(k) and not gaps.in_trunk(k, trunk))
    ]
    layers = [k.removesuffix(".weight") for k in extra if k.endswith(".weight") and state[k].ndim >= 2]
    fitting = [
        path for path in layers if math.prod(state[f"{path}.weight"].shape[1:]) == math.prod(wanted[1:])
    ]
    if not layers or not extra:
        return state, []
    rest = {key: tensor for key, tensor in state.items() if key not in extra}
    if len(fitting) == len(layers) == 1:
        path = fitting[0]
        weight = state[f"{path}.weight"]
        rest[f"{head}.weight"] = weight.reshape(weight.shape[0], *wanted[1:])
        if f"{path}.bias" in state and f"{head}.bias" in outline.shapes:
            rest[f"{head}.bias"] = state[f"{path}.bias"]
        moved = (
            f" as {head!r}" if path != head else f", reshaped to {'x'.join(map(str, wanted[1:]))} per class"
        )
        return rest, [f"took the classifier {path!r}{moved}"]
    if own is None and not any(gaps.under(k, head) for k in extra) and len(layers) != 1:
        return state, []
    return rest, [f"left out its classifier ({listing(layers, 3)}): it does not have the form of {head!r}"]


def _channels(
    module: nn.Module, state: dict[str, Tensor], outline: Outline
) -> tuple[dict[str, Tensor], list[str]]:
    """Between grey and colour: three channels are summed into one, one is spread over three (as timm does it)."""
    key = f"{outline.first_conv}.weight"
    stem, wanted = state.get(key), dict(module.named_parameters()).get(key)
    if stem is None or wanted is None or stem.ndim != 4 or stem.shape[1] == wanted.shape[1]:
        return state, []
    pair = (stem.shape[1], wanted.shape[1])
    if stem.shape[0] != wanted.shape[0] or pair not in ((_RGB, 1), (1, _RGB)):
        return state, []
    with torch.no_grad():
        adapted = stem.sum(dim=1, keepdim=True) if pair[0] == _RGB else stem.repeat(1, _RGB, 1, 1) / _RGB
    how = "summed its 3 input channels into 1" if pair[0] == _RGB else "spread its 1 input channel over 3"
    return state | {key: adapted}, [f"the stem {outline.first_conv!r}: {how}"]
