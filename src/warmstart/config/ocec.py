"""Which of document 001's models: `ocec`, and behind it, joined by hyphens, what differs from its defaults. No torch.

`ocec-inverted_se-avg-c48-b6` is the architecture inverted_se with the head avg, 48 base channels and 6 blocks. What a
name does not say is the default, or, beside a file of weights, what the file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from warmstart.errors import UserError, closest

FAMILY = "ocec"
VARIANTS = {"baseline": "avg", "inverted_se": "avgmax_mlp", "convnext": "transformer"}  # with their own heads
HEADS = ("avg", "avgmax_mlp", "transformer", "mlp_mixer")
TOKEN_HEADS = HEADS[2:]
# Of a margin head, which classifies by cosines: see models/margin.py.
MARGINS = ("cosface", "arcface")
PROGRAM = "warmstart"  # in train_config, of files that are written here in the document's form
_LETTERS = {
    "c": "base_channels",
    "b": "num_blocks",
    "x": "expansion",
    "r": "se_reduction",
    "g": "token_mixer_grid",
    "l": "token_mixer_layers",
}
_COUNTS = ("base_channels", "num_blocks", "expansion", "se_reduction", "token_mixer_layers")
_MOST = 4096  # of anything that a file may state
_MOST_CHANNELS = 65_536
_LEAST = {"se_reduction": 0}  # 0 is off; all others are at least 1
_UNDROPPED = "undropped"
WORDS = (
    f"{', '.join(VARIANTS)}; {', '.join(HEADS)}; c32 (base channels), b4 (blocks), g2x3 (token grid, down x across), "
    "l2 (token layers), x4 (expansion), r8 (SE reduction); cosface or arcface (a margin head)"
)
_REACH = 64  # pixels around a side that does not fit, searched for some that do


@dataclass(frozen=True)
class OcecShape:
    """Everything that decides which tensors the model has, by the document's names."""

    arch_variant: str = "baseline"
    head_variant: str = ""  # as the name says; `head` is the one in force
    base_channels: int = 32
    num_blocks: int = 4
    expansion: int = 4
    se_reduction: int = 8
    token_mixer_grid: tuple[int, int] = (2, 3)  # (down, across)
    token_mixer_layers: int = 2
    margin: str = ""  # the method of a margin head, which then classifies in place of `head`
    undropped: bool = False  # avgmax_mlp made with dropout 0 has no layer for it, and other numbers behind it

    @property
    def head(self) -> str:
        return self.head_variant or VARIANTS[self.arch_variant]

    @property
    def num_halvings(self) -> int:
        """Blocks with stride 2, each of which doubles the channels: every second one, but not the first."""
        return (self.num_blocks - 1) // 2

    @property
    def channels(self) -> int:
        """Of the last feature map."""
        return self.base_channels * 2**self.num_halvings

    def feature_map(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the last feature map for images of `size`, in pixels."""
        down, across = (self._side(side) for side in size)
        return down, across

    def _side(self, side: int) -> int:
        if self.arch_variant == "convnext":
            return side // 4 // 2**self.num_halvings
        for _ in range(self.num_halvings + 1):
            side = (side + 1) // 2
        return side

    @property
    def name(self) -> str:
        """The shortest name that says it."""
        default, words = OcecShape(), [FAMILY]
        if self.arch_variant != default.arch_variant:
            words.append(self.arch_variant)
        if self.head != VARIANTS[self.arch_variant]:
            words.append(self.head)
        unread: tuple[str, ...] = (
            () if self.head in TOKEN_HEADS else ("token_mixer_grid", "token_mixer_layers")
        )
        unread += () if self.arch_variant == "inverted_se" else ("expansion", "se_reduction")
        for letter, name in _LETTERS.items():
            value = getattr(self, name)
            if value != getattr(default, name) and name not in unread:
                words.append(f"{letter}{_text(value)}")
        words += [self.margin] if self.margin else []
        return "-".join([*words, *([_UNDROPPED] if self.undropped and self.head == "avgmax_mlp" else [])])


def is_ocec(bare: str) -> bool:
    return bare == FAMILY or bare.startswith(f"{FAMILY}-")


def said(bare: str) -> dict[str, Any]:
    """What a name says, by field of `OcecShape`. Raises UserError for words that mean nothing."""
    found: dict[str, Any] = {}
    for word in bare.split("-")[1:]:
        name, value = _read(word)
        if name is None:
            hint = closest(word, (*VARIANTS, *HEADS, *MARGINS)) or "leave it out"
            raise UserError(f"builtin:{bare}: {word!r} means nothing", WORDS, hint)
        if name in found and found[name] != value:
            raise UserError(
                f"builtin:{bare} says {name} twice: {_text(found[name])} and {_text(value)}", "one of them"
            )
        found[name] = value
    return found


def shape_of(bare: str) -> OcecShape:
    """The model of a name; UserError as `said`, and for one that no memory holds."""
    shape = OcecShape(**said(bare))
    if not _is_possible(shape):
        raise UserError(
            f"builtin:{bare}: every second block doubles the channels, to more than {_MOST_CHANNELS:,} at the last",
            "fewer blocks (b4) or channels (c32)",
        )
    return shape


def _is_possible(shape: OcecShape) -> bool:
    return shape.num_blocks >= 1 and shape.base_channels >= 1 and shape.channels <= _MOST_CHANNELS


def _read(word: str) -> tuple[str | None, Any]:
    if word in VARIANTS:
        return "arch_variant", word
    if word in HEADS:
        return "head_variant", word
    if word in MARGINS:
        return "margin", word
    if word == _UNDROPPED:
        return word, True
    name = _LETTERS.get(word[:1])
    if name == "token_mixer_grid":
        match = re.fullmatch(r"g([1-9]\d{0,3})x([1-9]\d{0,3})", word)
        return (name, (int(match[1]), int(match[2]))) if match else (None, None)
    if name is None or not re.fullmatch(r".\d{1,5}", word) or int(word[1:]) < _LEAST.get(name, 1):
        return None, None
    return name, int(word[1:])


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def contradictions(asked: str, found: str) -> list[str]:
    """What the name `asked` says otherwise than the model `found`, each in words."""
    other = shape_of(found)
    theirs = {**asdict(other), "head_variant": other.head}
    return [
        f"{name} is {_text(value)} by --model and {_text(theirs[name]) or 'none'} in the file"
        for name, value in said(asked).items()
        if value != theirs[name]
    ]


def shape_in(config: Mapping[Any, Any]) -> OcecShape | None:
    """The model of a checkpoint's `model_config`; None where it is of something else."""
    if config.get("arch_variant") not in VARIANTS or config.get("pretrained_backbone"):
        return None
    head, grid = (
        config.get("head_variant", "auto"),
        config.get("token_mixer_grid", OcecShape.token_mixer_grid),
    )
    counts = {name: config[name] for name in _COUNTS if name in config}
    is_grid = isinstance(grid, (list, tuple)) and len(grid) == 2 and all(map(_is_count, grid))
    if head not in (*HEADS, "auto") or not is_grid or not all(map(_is_count, counts.values())):
        return None
    shape = OcecShape(
        arch_variant=config["arch_variant"],
        head_variant="" if head == "auto" else head,
        token_mixer_grid=(grid[0], grid[1]),
        undropped=config.get("dropout") in (0, 0.0),
        **counts,
    )
    return shape if _is_possible(shape) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= _MOST


def grid_problem(shape: OcecShape, size: tuple[int, int]) -> UserError | None:
    """Why images of `size` (height, width in pixels) do not fit the head's token grid, with those that do."""
    name, (height, width) = f"builtin:{shape.name}", size
    rows, columns = shape.feature_map(size)
    if not rows or not columns:
        least = "x".join(str(_fitting(shape, side, 1)) for side in size)
        return UserError(
            f"{name}: nothing is left of images of {height}x{width} pixels",
            f"at least {least}",
            f"--image-size {least}",
        )
    down, across = shape.token_mixer_grid
    if shape.head not in TOKEN_HEADS or (rows % down == 0 and columns % across == 0):
        return None
    near = sorted(
        {(h, w) for h in _around(shape, height, down) for w in _around(shape, width, across)},
        key=lambda found: abs(math.log(found[0] / height)) + abs(math.log(found[1] / width)),
    )
    sizes = [f"{h}x{w}" for h, w in near[:3]]
    grid = f"{math.gcd(rows, down)}x{math.gcd(columns, across)}"
    fitted = replace(shape, token_mixer_grid=(math.gcd(rows, down), math.gcd(columns, across)))
    return UserError(
        f"{name}: images of {height}x{width} pixels give a feature map of {rows}x{columns}, which the token grid "
        f"{down}x{across} of the head {shape.head} does not divide",
        f"--image-size {' or '.join(sizes)}" if sizes else f"a grid that divides {rows}x{columns}",
        f"--token-mixer-grid {grid} fits these images (--model builtin:{fitted.name})",
    )


def _around(shape: OcecShape, side: int, parts: int) -> list[int]:
    """The nearest sides, in pixels, below and above, whose feature map is divided by `parts`: (0 to 2 of them)."""
    whole = shape_stride(shape)
    fits = [
        s
        for s in range(whole, side + _REACH * whole, whole)
        if (m := shape.feature_map((s, s))[0]) and m % parts == 0
    ]
    below, above = [s for s in fits if s <= side][-1:], [s for s in fits if s > side][:1]
    return below + above


def shape_stride(shape: OcecShape) -> int:
    """Pixels by which an image shrinks to one of the feature map."""
    return (4 if shape.arch_variant == "convnext" else 2) * 2**shape.num_halvings


def _fitting(shape: OcecShape, side: int, parts: int) -> int:
    return next((s for s in _around(shape, side, parts)), shape_stride(shape))


def joined_name(names: list[str]) -> str:
    """One name for the words of several, as the document gives each by a flag of its own."""
    words = dict.fromkeys(word for name in names for word in name.split("-")[1:])
    return f"builtin:{'-'.join([FAMILY, *words])}"
