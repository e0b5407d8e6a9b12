"""The training plan: one row per block, computed and checked before anything is changed or spent.

A row says whether its block is frozen or trained, from which epoch, at which rate and decay, and in
which mode its norms run; together the rows name every parameter of the model exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from warmstart.config.schema import AdaptConfig, OptimConfig
from warmstart.errors import UserError, closest, listing
from warmstart.records import Block


@dataclass(frozen=True)
class Row:
    """One block's part in training.

    `mode` is frozen or full; `norms` is `train` (batch statistics, running averages move), `held`
    (evaluation mode, nothing moves) or `-` (the block has none); `from_epoch` is when it starts to train.
    `trainable`, `held` name the block's parameters: those the optimizer gets, and those it never gets.
    """

    name: str
    mode: str
    lr: float
    weight_decay: float
    norms: str
    from_epoch: int
    num_parameters: int
    trainable: tuple[str, ...]
    held: tuple[str, ...]

    def trains_at(self, epoch: int) -> bool:
        return self.mode != "frozen" and epoch >= self.from_epoch


@dataclass(frozen=True)
class Plan:
    """All rows from stem to head, the epochs at which a stage begins, and what should be known about them."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def stage_epochs(self) -> tuple[int, ...]:
        """Epochs at which the set of trained blocks changes; the first is always 0."""
        return tuple(sorted({0} | {row.from_epoch for row in self.rows if row.mode != "frozen"}))

    def stage(self, epoch: int) -> int:
        """The number of the stage that `epoch` lies in."""
        return sum(1 for first in self.stage_epochs if first <= epoch) - 1

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def to_json(self, steps_per_epoch: int) -> dict[str, Any]:
        rows = [{**asdict(row), "from_step": row.from_epoch * steps_per_epoch} for row in self.rows]
        return {"rows": rows, "stage_epochs": self.stage_epochs, "notes": self.notes}


def match_blocks(pattern: str, names: Sequence[str], flag: str) -> tuple[str, ...]:
    """Block names that a pattern names: `backbone` (all but the head), `all`, a name, or a glob.

    Raises:
        UserError: the pattern names no block.
    """
    if pattern == "all":
        return tuple(names)
    if pattern == "backbone":
        return tuple(names[:-1])
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        raise UserError(
            f"{flag}: {pattern!r} names no block of this model",
            f"one of {listing(names, 20)}, a glob such as {names[0][:4]}*, backbone, or all",
            closest(pattern, [*names, "backbone", "all"]),
        )
    return found


def make_plan(
    blocks: Sequence[Block], sizes: dict[str, tuple[int, ...]], adapt: AdaptConfig, optim: OptimConfig
) -> Plan:
    """The plan for a model's blocks; `sizes` maps each parameter to its shape.

    Raises:
        UserError: patterns that name nothing, nothing left to train, or a block unfrozen twice.
    """
    names = [block.name for block in blocks]
    frozen = {name for pattern in adapt.freeze for name in match_blocks(pattern, names, "--freeze")}
    starts = _starts(names, adapt)
    rates = _rates(names, adapt, optim.lr)
    rows = []
    for block in blocks:
        is_frozen = block.name in frozen or block.name not in starts
        norm_parameters = _norm_parameters(block) if adapt.freeze_bn else frozenset()
        held = block.parameters if is_frozen else tuple(p for p in block.parameters if p in norm_parameters)
        trainable = tuple(p for p in block.parameters if p not in held)
        has_decay = any(decays(sizes[p]) for p in trainable)
        norms = "-" if not block.norms else ("held" if is_frozen or adapt.freeze_bn else "train")
        rows.append(
            Row(
                name=block.name,
                mode="full" if trainable else "frozen",
                lr=rates[block.name] if trainable else 0.0,
                weight_decay=optim.weight_decay if has_decay else 0.0,
                norms=norms,
                from_epoch=0 if is_frozen else starts[block.name],
                num_parameters=sum(_count(sizes[p]) for p in block.parameters),
                trainable=trainable,
                held=held,
            )
        )
    plan = Plan(tuple(rows), tuple(_notes(rows, names, adapt)))
    _check(plan, sizes)
    return plan


def decays(shape: tuple[int, ...]) -> bool:
    """Weight decay is for weight matrices; biases and norm scales (one axis or none) have none."""
    return len(shape) > 1


def _starts(names: Sequence[str], adapt: AdaptConfig) -> dict[str, int]:
    """Block -> the epoch from which it may train; absent: never. Without --unfreeze, all start at 0."""
    if not adapt.unfreeze:
        return dict.fromkeys(names, 0)
    starts: dict[str, int] = {}
    for epoch, pattern in sorted(adapt.unfreeze):
        matched = match_blocks(pattern, names, f"--unfreeze {epoch}")
        new = [name for name in matched if name not in starts]
        if not new:
            raise UserError(
                f"--unfreeze {epoch}:{pattern} unfreezes nothing: {listing(matched)} train already by then",
                "each entry to name at least one block that is still frozen",
            )
        starts.update(dict.fromkeys(new, epoch))
    if min(starts.values()) > 0:
        # Training nothing until the first entry would be a waste that no one asks for on purpose.
        first = min(starts.values())
        raise UserError(
            f"--unfreeze names no block for epoch 0, so nothing would train before epoch {first}",
            "an entry for epoch 0, such as 0:head",
        )
    return starts


def _rates(names: Sequence[str], adapt: AdaptConfig, base: float) -> dict[str, float]:
    rates: dict[str, float] = {}
    for pattern, rate in adapt.lrs:
        for name in match_blocks(pattern, names, "--lrs"):
            rates.setdefault(name, rate)  # first match wins
    return {name: rates.get(name, base) for name in names}


def _norm_parameters(block: Block) -> frozenset[str]:
    prefixes = tuple(f"{norm}." for norm in block.norms)
    return (
        frozenset(name for name in block.parameters if name.startswith(prefixes)) if prefixes else frozenset()
    )


def _notes(rows: Sequence[Row], names: Sequence[str], adapt: AdaptConfig) -> list[str]:
    notes = []
    never = [row.name for row in rows if row.mode == "frozen"]
    if adapt.unfreeze and never:
        notes.append(f"--unfreeze never names {listing(never)}: frozen for the whole run")
    taken: set[str] = set()
    for pattern, _ in adapt.lrs:
        matched = match_blocks(pattern, names, "--lrs")
        if all(name in never for name in matched):
            notes.append(f"--lrs {pattern} has no effect: {listing(matched)} frozen")
        elif taken.issuperset(matched):
            notes.append(f"--lrs {pattern} has no effect: earlier entries match first")
        taken.update(matched)
    with_norms = [row.name for row in rows if row.norms != "-"]
    if adapt.freeze_bn and not with_norms:
        notes.append("--freeze-bn has no effect: this model keeps no running statistics")
    elif adapt.freeze_bn and all(name in never for name in with_norms):
        notes.append(f"--freeze-bn has no effect: {listing(with_norms)} frozen with their norms")
    return notes


def _check(plan: Plan, sizes: dict[str, tuple[int, ...]]) -> None:
    named = [name for row in plan.rows for name in (*row.trainable, *row.held)]
    assert len(named) == len(set(named)), "a parameter is in two rows of the plan"
    assert set(named) == set(sizes), f"parameters without a row: {sorted(set(sizes) - set(named))[:5]}"
    if not any(row.trainable for row in plan.rows):
        raise UserError("every block is frozen: nothing would be trained", "at least one block that trains")


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
