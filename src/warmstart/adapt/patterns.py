"""Which blocks a pattern of --freeze, --lrs or --unfreeze names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from warmstart.config.schema import AdaptConfig, TextConfig
from warmstart.errors import UserError, closest, listing
from warmstart.records import TASK_HEAD

MARGIN_HEAD = "margin_head"
TEXT_TOWER = "text_"  # what the blocks of the text tower of an image-text model start with
_PART = re.compile(r"backbone\s*([<>])\s*(\d*\.?\d+)", re.ASCII)


def freeze_text_tower(adapt: AdaptConfig, text: TextConfig, names: Sequence[str]) -> AdaptConfig:
    """What is to train, of a model with these blocks: without its text tower where the settings freeze that."""
    if text.tower != "frozen" or not any(name.startswith(TEXT_TOWER) for name in names):
        return adapt
    return adapt.model_copy(update={"freeze": (*adapt.freeze, f"{TEXT_TOWER}*")})


def match_blocks(pattern: str, names: Sequence[str], flag: str) -> tuple[str, ...]:
    """Block names that a pattern names: `all`, `head`, `backbone` (all but the head), a part of it, a name, or a glob.
    A word that names no block stands for those that begin with it: `layers` for `layers.0`, `text` for a text tower.

    `backbone>3` are the last 3 blocks of the backbone and `backbone>.5` its last half; `<` counts from the stem.

    Raises:
        UserError: the pattern names no block.
    """
    if pattern == "all":
        return tuple(names)
    heads = head_blocks(names)
    backbone = tuple(names[: -len(heads)])
    if pattern == "head" and "head" not in names:  # a margin head, or those of several tasks
        return heads
    if pattern == "backbone":
        return backbone
    if part := _PART.fullmatch(pattern):
        num = _number_of_blocks(pattern, part[2], len(backbone), flag)
        return backbone[:num] if part[1] == "<" else backbone[-num:]
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    found = found or tuple(name for name in names if name.startswith((f"{pattern}.", f"{pattern}_")))
    if not found:
        raise UserError(
            f"{flag}: {pattern!r} names no block of this model",
            f"one of {listing(names, 20)}, a glob such as {names[0][:4]}*, backbone, or all",
            closest(pattern, [*names, "backbone", "all"]),
        )
    return found


def head_blocks(names: Sequence[str]) -> tuple[str, ...]:
    """The last block, which is the head; of several tasks, those of all heads."""
    return tuple(name for name in names if name.startswith(TASK_HEAD)) or (names[-1],)


def with_margin_head(adapt: AdaptConfig, names: Sequence[str]) -> AdaptConfig:
    """Settings for a model whose head is a margin head: `margin_head` names it, whatever the block is called.

    Its rate comes first, as that of `head` is for the layers which document 001 has beside its margin head.
    """
    head = names[-1]
    if head == MARGIN_HEAD:
        return adapt
    given = [(head if pattern == MARGIN_HEAD else pattern, rate) for pattern, rate in adapt.lrs]
    is_named = [pattern == MARGIN_HEAD for pattern, _ in adapt.lrs]
    lrs = [pair for _, pair in sorted(zip(is_named, given, strict=True), key=lambda each: not each[0])]
    freeze = tuple(head if pattern == MARGIN_HEAD else pattern for pattern in adapt.freeze)
    unfreeze = tuple(
        replace(entry, pattern=head) if entry.pattern == MARGIN_HEAD else entry for entry in adapt.unfreeze
    )
    return adapt.model_copy(update={"lrs": tuple(lrs), "freeze": freeze, "unfreeze": unfreeze})


def _number_of_blocks(pattern: str, written: str, num_blocks: int, flag: str) -> int:
    """A count, or a share of all blocks of the backbone (written with a point), rounded up."""
    amount = float(written)
    if "." in written and 0 < amount < 1:
        return -int(-amount * num_blocks // 1)
    if "." in written or not 1 <= amount <= num_blocks:
        raise UserError(
            f"{flag}: {pattern!r} names no part of the {num_blocks} blocks of the backbone",
            f"a number of blocks from 1 to {num_blocks}, or a share between 0 and 1 such as backbone>.5",
        )
    return int(amount)
