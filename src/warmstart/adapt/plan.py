"""The training plan: one row per block, computed and checked before anything is changed or spent.

A row says whether its block is frozen or trained, from which stage, at which rate and decay, and in
which mode its norms run; together the rows name every parameter of the model exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from warmstart.adapt.patterns import TEXT_TOWER, head_blocks, match_blocks
from warmstart.adapt.stages import Stage, frozen_blocks, make_stages
from warmstart.config.schema import AdaptConfig, OptimConfig
from warmstart.errors import UserError, listing
from warmstart.records import Block


@dataclass(frozen=True)
class Row:
    """One block's part in training.

    `mode` is frozen, full, or lora: only the block's low-rank adapters train. `norms` is `train` (batch statistics,
    running averages move), `held` (evaluation mode, nothing moves) or `-` (the block has none); `from_stage` is when it
    starts to train. `lr` is the rate at --lr; `has_own_rate` says that --lrs names it, so that no stage changes it.
    `num_trainable` counts the numbers that the optimizer gets, of `num_parameters`.
    `trainable`, `held` name the block's parameters: those the optimizer gets, and those it never gets.
    """

    name: str
    mode: str
    lr: float
    has_own_rate: bool
    weight_decay: float
    norms: str
    from_stage: int
    num_parameters: int
    num_trainable: int
    trainable: tuple[str, ...]
    held: tuple[str, ...]

    def trains_in(self, stage: int) -> bool:
        return self.mode != "frozen" and stage >= self.from_stage


@dataclass(frozen=True)
class Plan:
    """All rows from stem to head, the stages, and what should be known about them.

    A run without --unfreeze has one stage. Stages are counted from 0 and follow each other. `remarks` say what of the
    model has no row, or how a row comes to be as it is.
    """

    rows: tuple[Row, ...]
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def last_stage(self) -> int:
        return len(self.stages) - 1

    def new_blocks(self, stage: int) -> list[str]:
        """The blocks that train from this stage on."""
        return [row.name for row in self.rows if row.trainable and row.from_stage == stage]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def rate(self, row: Row, stage: int) -> float:
        """The planned rate of a block in a stage; 0 where it does not train."""
        if not row.trains_in(stage):
            return 0.0
        return row.lr if row.has_own_rate else row.lr * self.stages[stage].factor

    def to_json(self, steps_per_epoch: int) -> dict[str, Any]:
        """`from_step` and `step` are None where a stage waits for a plateau or a metric."""
        steps = [stage.trigger.step(steps_per_epoch) for stage in self.stages]
        rates = {row.name: [self.rate(row, stage) for stage in range(len(self.stages))] for row in self.rows}
        return {
            "rows": [
                {**asdict(row), "from_step": steps[row.from_stage], "rates": rates[row.name]}
                for row in self.rows
            ],
            "stages": [
                {
                    "when": str(stage.trigger),
                    "step": step,
                    "factor": stage.factor,
                    "blocks": self.new_blocks(number),
                }
                for number, (stage, step) in enumerate(zip(self.stages, steps, strict=True))
            ],
            "notes": self.notes,
            "remarks": self.remarks,
        }


def make_plan(
    blocks: Sequence[Block], sizes: dict[str, tuple[int, ...]], adapt: AdaptConfig, optim: OptimConfig
) -> Plan:
    """The plan for a model's blocks; `sizes` maps each parameter to its shape.

    Raises:
        UserError: patterns that name nothing, nothing left to train, or a block unfrozen twice.
    """
    names = [block.name for block in blocks]
    stages, starts = make_stages(names, adapt, optim.lr)
    frozen = frozen_blocks(names, adapt, starts)
    has_lora = any(block.adapters for block in blocks)
    own_rates = _own_rates(names, adapt)
    decayed = {name: optim.lr * (adapt.layer_decay or 1.0) ** depth for name, depth in _depths(names).items()}
    rows = []
    for block in blocks:
        by_lora = has_lora and block is not blocks[-1]  # nothing but adapters: the head trains whole
        trainable = () if block.name in frozen else _trainable(block, by_lora, adapt)
        held = tuple(p for p in block.parameters if p not in set(trainable))
        has_decay = any(decays(p, sizes[p]) for p in trainable)
        is_held = block.name in frozen or by_lora or adapt.freeze_bn
        rows.append(
            Row(
                name=block.name,
                mode="frozen" if not trainable else "lora" if by_lora else "full",
                lr=own_rates.get(block.name, decayed[block.name]) if trainable else 0.0,
                has_own_rate=block.name in own_rates,
                weight_decay=optim.weight_decay if has_decay else 0.0,
                norms="-" if not block.norms else "held" if is_held else "train",
                from_stage=starts[block.name] if trainable else 0,
                num_parameters=sum(_count(sizes[p]) for p in block.parameters) + block.num_four_bit,
                num_trainable=sum(_count(sizes[p]) for p in trainable),
                trainable=trainable,
                held=held,
            )
        )
    notes = _notes(rows, stages, adapt, has_lora)
    plan = Plan(tuple(rows), stages, tuple(notes))
    _check(plan, sizes)
    return plan


def decays(name: str, shape: tuple[int, ...]) -> bool:
    """Weight decay is for weight matrices; biases and scales (one axis or none, and those of DoRA) have none."""
    return len(shape) > 1 and not name.endswith(".lora_magnitude")


def _trainable(block: Block, by_lora: bool, adapt: AdaptConfig) -> tuple[str, ...]:
    """The parameters of a block that train if it does."""
    if by_lora:
        return block.adapters
    norms = _norm_parameters(block) if adapt.freeze_bn else frozenset()
    return tuple(name for name in block.parameters if name not in norms)


def _depths(names: Sequence[str]) -> dict[str, int]:
    """How many blocks are above each; those of a text tower stand beside the image tower, not above it."""
    text = [name for name in names if name.startswith(TEXT_TOWER)]
    heads = head_blocks(names)
    rest = [name for name in names if name not in (*text, *heads)]
    found = {name: depth for tower in (rest, text) for depth, name in enumerate(reversed(tower), 1)}
    return found | dict.fromkeys(heads, 0)


def _own_rates(names: Sequence[str], adapt: AdaptConfig) -> Mapping[str, float]:
    """The rates of the blocks that --lrs names."""
    rates: dict[str, float] = {}
    for pattern, rate in adapt.lrs:
        for name in _match_rate(pattern, names, adapt):
            rates.setdefault(name, rate)  # first match wins
    return rates


def _match_rate(pattern: str, names: Sequence[str], adapt: AdaptConfig) -> tuple[str, ...]:
    """As `match_blocks`; but `head` names no margin head that another entry of --lrs names."""
    is_named = "head" not in names and any(other == names[-1] for other, _ in adapt.lrs)
    return () if pattern == "head" and is_named else match_blocks(pattern, names, "--lrs")


def _norm_parameters(block: Block) -> frozenset[str]:
    prefixes = tuple(f"{norm}." for norm in block.norms)
    return (
        frozenset(name for name in block.parameters if name.startswith(prefixes)) if prefixes else frozenset()
    )


def _notes(rows: Sequence[Row], stages: Sequence[Stage], adapt: AdaptConfig, has_lora: bool) -> list[str]:
    notes, names = [], [row.name for row in rows]
    never = [row.name for row in rows if row.mode == "frozen"]
    if has_lora and never:
        notes.append(f"no layer of {listing(never)} has an adapter: frozen for the whole run")
    elif adapt.unfreeze and never:
        notes.append(f"--unfreeze never names {listing(never)}: frozen for the whole run")
    taken: set[str] = set()
    for pattern, _ in adapt.lrs:
        matched = _match_rate(pattern, names, adapt)
        if not matched:
            notes.append(f"--lrs {pattern} has no effect: {names[-1]} is the head, with an entry of its own")
        elif all(name in never for name in matched):
            notes.append(f"--lrs {pattern} has no effect: {listing(matched)} frozen")
        elif taken.issuperset(matched):
            notes.append(f"--lrs {pattern} has no effect: earlier entries match first")
        taken.update(matched)
    free = [row for row in rows if row.trainable and not row.has_own_rate]
    heads = head_blocks(names)
    if adapt.layer_decay is not None and all(row.name in heads for row in free):
        notes.append("--layer-decay has no effect: every block below the head is frozen or named in --lrs")
    for number, stage in enumerate(stages):
        if has_lora and all(row.from_stage != number or not row.trainable for row in rows):
            notes.append(f"--unfreeze {stage.trigger} adds nothing: its blocks have no adapters")
        if stage.sets_rate and all(row.from_stage > number for row in free):
            notes.append(
                f"the rate of --unfreeze {stage.trigger} has no effect: --lrs names all that trains then"
            )
    with_norms = [row.name for row in rows if row.norms != "-"]
    held = [row.name for row in rows if row.mode != "full"]
    if adapt.freeze_bn and not with_norms:
        notes.append("--freeze-bn has no effect: this model keeps no running statistics")
    elif adapt.freeze_bn and all(name in held for name in with_norms):
        why = "--lora.rank holds all norms" if has_lora else f"{listing(with_norms)} frozen with their norms"
        notes.append(f"--freeze-bn has no effect: {why}")
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
