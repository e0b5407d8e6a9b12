"""Out of memory on an accelerator: fewer items at once, and the same sums from as many parts as it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from warmstart.console import log
from warmstart.data.batches import Batch
from warmstart.errors import UserError

T = TypeVar("T")
_TWO = 2


@dataclass
class AtOnce:
    """How many items of a batch the model is given at once (None: all of them). It is only ever lowered.

    `fewest` is of an evaluation: an episode makes sense as a whole only.
    """

    limit: int | None = None
    fewest: int = 1


def within_memory(
    compute: Callable[[Iterable[Batch]], T], batches: Iterable[Batch], at_once: AtOnce, fewest: int = 1
) -> T:
    """`compute` over the batches; where memory does not suffice, again over halves of them, from the first one on.

    `compute` must begin anew with every call, and give the same for a batch and for its parts. The limit is lowered
    in place, so that the next call does not fail again. Parts have at least `fewest` items: norm layers cannot learn
    from one.

    Raises:
        UserError: not even `fewest` items find room.
    """
    seen: list[Batch] = []
    coming = iter(batches)
    size = 0

    def pieces() -> Iterator[Batch]:
        nonlocal size
        for batch in _all(seen, coming):
            for piece in _split(batch, at_once.limit, fewest):
                size = len(piece)
                yield piece

    while True:
        try:
            return compute(pieces())
        except torch.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
        # Only here, where the error and with it all that its frames held are gone.
        _lower(at_once, size, fewest, reason)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _all(seen: list[Batch], coming: Iterator[Batch]) -> Iterator[Batch]:
    """The batches seen before, then those that are still to come, which are kept for another time."""
    yield from tuple(seen)
    for batch in coming:
        seen.append(batch)
        yield batch


def _lower(at_once: AtOnce, size: int, fewest: int, reason: str) -> None:
    limit = max(fewest, (size + 1) // 2)
    if limit >= size or (at_once.limit is not None and limit >= at_once.limit):
        raise UserError(
            f"out of memory with {size} image{'s' if size > 1 else ''} at once: {reason}",
            "room for the model, its optimizer and "
            + ("one image (two where BatchNorm layers learn)" if fewest <= _TWO else "an episode as a whole"),
            ("" if fewest <= _TWO else "a smaller --meta.query or --meta.way, ")
            + "a smaller --image-size or model, --gradient-checkpointing, --precision bf16, --freeze backbone (no "
            "gradients there), another --device; or end what else holds the device's memory, then `warmstart resume`",
        )
    at_once.limit = limit
    log.warning(
        "out of memory with %d images at once (%s): from here on at most %d at once. Order, augmentation and weight "
        "of every image stay; results agree to rounding, except that BatchNorm layers that learn, dropout and losses "
        "over a whole batch see the smaller parts",
        size,
        reason,
        limit,
    )


def _split(batch: Batch, limit: int | None, fewest: int) -> Iterator[Batch]:
    """Parts of nearly equal size."""
    num = len(batch)
    if limit is None or num <= limit:
        yield batch
        return
    number = min(-(-num // limit), max(1, num // fewest))
    for part in range(number):
        yield batch.take(slice(num * part // number, num * (part + 1) // number))
