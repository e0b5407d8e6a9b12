"""A file that does not fit its model, explained: the cause and the way out in words, never a list of all names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from warmstart.errors import UserError, listing
from warmstart.models.candidates import Likeness, block_counts, search
from warmstart.models.contents import Content, describe, is_segmenter, unusable
from warmstart.models.created import Shape
from warmstart.models.gaps import Gaps, is_computed, is_position

_NUM_EXAMPLES = 3
_LEAST_ALIKE, _ALIKE = 0.05, 0.5  # shares of the parameters
_AS_OBJECT = (
    "pass the model that was saved as an nn.Module in Python: warmstart.finetune(module, data, weights=FILE)"
)
_EXPECTED = "every tensor of the backbone, by name and shape"


def explain(
    state: Mapping[str, Tensor], wanted: Mapping[str, Shape], gaps: Gaps, source: str, name: str | None
) -> UserError:
    """The error for tensors that do not fit the model `name` whose tensors are `wanted`."""
    model = name or "the model"
    start = f"{source} does not fit {model}"
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if (content := unusable(state)) is not None:
        return UserError(f"{start}: {content.what}", content.expected, content.fix)
    if gaps.share == 1 and not gaps.unexpected and not any(map(is_computed, gaps.differing)):
        return UserError(
            f"{start}: the backbone does, its classifier does not: {_counts(gaps, shapes, wanted)}",
            _EXPECTED,
            "save the whole classifier, or leave it out: `warmstart finetune` gives it a new one",
        )
    content = None if is_segmenter(wanted) else describe(state)
    cause = _difference(shapes, wanted, gaps, model)
    # What differs from one of our own models, or from an object, in one thing is no model of a zoo.
    is_told = content is None and cause is not None and model.startswith(("builtin:", "object:"))
    likeness = Likeness() if is_told else search(shapes, name)
    if content is not None:
        return _other_content(start, content, likeness)
    if likeness.exact:
        return UserError(
            f"{start}, but {' and '.join(likeness.exact)} exactly{f': {cause}' if cause else ''}",
            _EXPECTED,
            f"--model {likeness.exact[0]}, or other --weights",
        )
    fits = f"({gaps.share:.1%} of the backbone's parameters fit)"
    if cause is not None:
        return UserError(f"{start} {fits}: {cause}", _EXPECTED, _fix(gaps, cause))
    return UserError(f"{start} {fits}: {_counts(gaps, shapes, wanted)}", _EXPECTED, _alike(likeness))


def explain_unknown(state: Mapping[str, Tensor], source: str) -> UserError:
    """The error for a file that nobody said the model of: what it is, or which model it fits."""
    if (content := unusable(state)) is not None:
        return UserError(f"{source}: {content.what}", content.expected, content.fix)
    content, likeness = describe(state), search({k: tuple(t.shape) for k, t in state.items()}, None)
    if content is not None:
        return _other_content(source, content, likeness)
    start = f"{source} does not say which model its {len(state)} tensors belong to"
    if likeness.exact:
        return UserError(
            f"{start}; they fit {' and '.join(likeness.exact)} exactly",
            "--model NAME beside these weights",
            f"--model {likeness.exact[0]}",
        )
    return UserError(start, "--model timm:NAME, torchvision:NAME or builtin:NAME", _alike(likeness))


def _other_content(start: str, content: Content, likeness: Likeness) -> UserError:
    """Of another task or library; its backbone may still be one that is known."""
    if not likeness.exact:
        return UserError(f"{start}: {content.what}", content.expected, content.fix)
    return UserError(
        f"{start}: {content.what}, whose backbone is that of {' and '.join(likeness.exact)}",
        content.expected,
        f"--model {likeness.exact[0]} takes the backbone",
    )


def _alike(likeness: Likeness) -> str:
    if likeness.renamed is not None and likeness.share < _ALIKE:
        return (
            f"its tensors have the shapes of {likeness.renamed} under other names: convert the names to that "
            f"model's, or {_AS_OBJECT}"
        )
    if likeness.nearest is not None and likeness.share >= _LEAST_ALIKE:
        return (
            f"the nearest known model is {likeness.nearest} ({likeness.share:.0%} of the parameters have its names and "
            f"shapes): pass the --model the file was saved from, or {_AS_OBJECT}"
        )
    return f"no known model is like it: pass the --model the file was saved from, or {_AS_OBJECT}"


def _difference(
    shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str
) -> str | None:
    """What sets the file apart from the model, if it is one thing."""
    causes = (_depth, _patch, _resolution, _channels, _width)
    return next((text for cause in causes if (text := cause(shapes, wanted, gaps, model))), None)


def _depth(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str) -> str | None:
    """Blocks more or fewer, the others alike."""
    if gaps.differing or not (gaps.missing or gaps.unexpected):
        return None
    found, own = block_counts(shapes), block_counts(wanted)
    other = {
        path: (found.get(path, 0), own[path]) for path in own if path in found and found[path] != own[path]
    }
    explained = [
        key for key in (*gaps.missing, *gaps.unexpected) if any(key.startswith(f"{path}.") for path in other)
    ]
    if not other or len(explained) < len(gaps.missing) + len(gaps.unexpected):
        return None
    parts = [
        f"{path} has {few} blocks in the file and {many} in {model}" for path, (few, many) in other.items()
    ]
    return f"another depth: {listing(parts, _NUM_EXAMPLES)}"


def _patch(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str) -> str | None:
    key = next((k for k in gaps.differing if "patch_embed" in k or k == "conv_proj.weight"), None)
    if key is None or len(shapes[key]) != 4 or len(wanted[key]) != 4 or shapes[key][0] != wanted[key][0]:
        return None
    (ours, theirs) = shapes[key][-1], wanted[key][-1]
    if ours == theirs:
        return None
    return f"another patch size: {key} is for patches of {ours} pixels, {model} has {theirs}"


def _resolution(
    shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str
) -> str | None:
    tables = [
        k for k in gaps.differing if is_position(k) or "relative_position" in k or "attention_bias" in k
    ]
    mixers = [k for k in gaps.differing if "mlp_tokens" in k]
    if gaps.missing or gaps.unexpected or set(gaps.differing) != {*tables, *mixers}:
        return None
    key = gaps.differing[0]
    return (
        f"another image size (or window): {len(gaps.differing)} tables of positions differ, {key} is "
        f"{_words(shapes[key])} in the file and {_words(wanted[key])} in {model}"
    )


def _channels(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str) -> str | None:
    if gaps.missing or gaps.unexpected or len(gaps.differing) != 1:
        return None
    key = gaps.differing[0]
    found, own = shapes[key], wanted[key]
    if len(found) != 4 or len(own) != 4 or (found[0], *found[2:]) != (own[0], *own[2:]):
        return None
    return f"another number of input channels: {key} takes {found[1]}, {model} {own[1]}"


def _width(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], gaps: Gaps, model: str) -> str | None:
    """All channels in one proportion: another width; in many, all fewer: channels were cut out."""
    if gaps.missing or gaps.unexpected or not gaps.differing:
        return None
    if any(len(shapes[key]) != len(wanted[key]) for key in gaps.differing):
        return None
    pairs = [
        (found, own)
        for key in gaps.differing
        for found, own in zip(shapes[key], wanted[key], strict=True)
        if found != own
    ]
    if not pairs:
        return None
    ratio, count = Counter(Fraction(found, own) for found, own in pairs).most_common(1)[0]
    first = gaps.differing[0]
    if count >= 0.8 * len(pairs):
        return (
            f"another width: {len(gaps.differing)} tensors differ as if all channels were {float(ratio):g} times as "
            "many; "
            f"{first} has {shapes[first][0]} in the file, and you asked for {wanted[first][0]} with {model}"
        )
    if all(found < own for found, own in pairs):
        return (
            f"pruned: {len(gaps.differing)} tensors have fewer channels, by different shares ({first}: "
            f"{shapes[first][0]} of {wanted[first][0]})"
        )
    return None


def _fix(gaps: Gaps, cause: str) -> str:
    if cause.startswith("another image size"):
        return "the --model of the size it was trained at, or --image-size of that size"
    if cause.startswith("another number of input channels"):
        return "a timm model, which takes any number of channels, or " + _AS_OBJECT
    return f"the --model it was saved from; or {_AS_OBJECT}"


def _counts(gaps: Gaps, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    differing = [
        f"{k} ({_words(shapes[k])} in the file, {_words(wanted[k])} in the model)" for k in gaps.differing
    ]
    parts = (
        ("missing from the file", gaps.missing),
        ("not in the model", gaps.unexpected),
        ("of another shape", differing),
    )
    return "; ".join(f"{len(keys)} {what}: {listing(keys, _NUM_EXAMPLES)}" for what, keys in parts if keys)


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
