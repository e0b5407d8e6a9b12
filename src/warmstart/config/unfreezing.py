"""When a block starts to train, as it is written: `0:head,20:backbone>.5,f1>=.80:all@1e-5`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from warmstart.config.values import parse_pairs

_TIME = re.compile(r"^(\d{1,9})\s*(steps?|epochs?)?$", re.ASCII)
_METRIC = re.compile(r"^([a-z]\w*)\s*(>=|<=)\s*(\S+)$", re.ASCII)
PLATEAU = "plateau"


@dataclass(frozen=True)
class Trigger:
    """What begins a stage: `kind` is epochs or steps (`value` of them are done), plateau, or metric.

    `metric` and `sign` (>= or <=) are of a metric: the first validation at which it is at `value` or beyond.
    """

    kind: str
    value: float = 0
    metric: str = ""
    sign: str = ""

    def __str__(self) -> str:
        if self.kind == PLATEAU:
            return PLATEAU
        if self.kind == "metric":
            return f"{self.metric}{self.sign}{self.value!r}"
        return f"{self.value:g}" + ("steps" if self.kind == "steps" else "")

    @property
    def is_timed(self) -> bool:
        return self.kind in ("epochs", "steps")

    @property
    def is_start(self) -> bool:
        return self.is_timed and self.value == 0

    def step(self, steps_per_epoch: int) -> int | None:
        """Optimizer steps done when the stage begins; None where that depends on how the run goes."""
        if not self.is_timed:
            return None
        return int(self.value) * (steps_per_epoch if self.kind == "epochs" else 1)


@dataclass(frozen=True)
class Unfreeze:
    """Blocks that train from a trigger on; `rate` is the base rate from then on (None: as before)."""

    trigger: Trigger
    pattern: str
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.trigger}:{self.pattern}" + ("" if self.rate is None else f"@{self.rate!r}")


def parse_unfreeze(value: Any) -> tuple[Unfreeze, ...]:
    """`0:head,20:backbone>.5@1e-4,f1>=.80:all`, a mapping, or a list of pairs.

    The order is that of the stages; epochs alone, or steps alone, are brought into theirs.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Unfreeze) for item in value):
        return tuple(value)
    entries = [_entry(when, what) for when, what in parse_pairs(value, ":", "0:head")]
    kinds = {entry.trigger.kind for entry in entries if not entry.trigger.is_start}
    if kinds <= {"epochs"} or kinds <= {"steps"}:
        entries.sort(key=lambda entry: entry.trigger.value)
    return tuple(entries)


def _entry(when: Any, what: Any) -> Unfreeze:
    pattern, has_rate, written = str(what).rpartition("@")
    if not has_rate:
        return Unfreeze(_trigger(str(when)), str(what))
    if not (pattern.strip() and 0 < _number(written) < math.inf):
        raise ValueError(f"{what!r}: behind @ stands the base rate of the stage, above 0; write all@1e-5")
    return Unfreeze(_trigger(str(when)), pattern.strip(), float(written))


def _trigger(written: str) -> Trigger:
    text = written.strip().lower()
    if text == PLATEAU:
        return Trigger(PLATEAU)
    if found := _TIME.match(text):
        return Trigger((found[2] or "epochs").rstrip("s") + "s", int(found[1]))
    found = _METRIC.match(text)
    if found is None or not math.isfinite(_number(found[3])):
        raise ValueError(
            f"{written!r} is not when a stage begins; write 20 (an epoch: 0, 1, 2, ...), 500steps, plateau or "
            "f1>=.80, as in 0:head,20:blocks.3,f1>=.80:all"
        )
    return Trigger("metric", float(found[3]), found[1], found[2])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


Unfreezing = Annotated[
    tuple[Unfreeze, ...],
    BeforeValidator(parse_unfreeze),
    PlainSerializer(lambda entries: ",".join(map(str, entries)) or None),
]
