"""The rule by which a binary classifier's threshold is chosen on val, and its written form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

_NUMBER = r"(\d+\.?\d*|\.\d+)"
_COST = re.compile(rf"^cost={_NUMBER}:{_NUMBER}$", re.ASCII)
_RECALL = re.compile(rf"^recall>={_NUMBER}$", re.ASCII)
_FORMS = "write f1, cost=5:1 (a missed positive costs 5 false alarms), recall>=.95, or a number such as .4"


@dataclass(frozen=True)
class ThresholdRule:
    """`f1`: highest F1 of the positive class. `cost`: lowest sum of `miss` per missed and `alarm` per false positive.

    `recall`: fewest false alarms with at least the recall `value`. `fixed`: the threshold `value`, whatever val says.
    """

    kind: Literal["f1", "cost", "recall", "fixed"]
    value: float = 0.0
    miss: float = 1.0
    alarm: float = 1.0

    def __str__(self) -> str:
        written = {"cost": f"cost={self.miss:g}:{self.alarm:g}", "recall": f"recall>={self.value:g}"}
        return written.get(self.kind, "f1" if self.kind == "f1" else f"{self.value:g}")


def parse_threshold(value: Any) -> ThresholdRule | None:
    """See `_FORMS`. Raises ValueError for a rule that nothing can satisfy."""
    if value is None or isinstance(value, ThresholdRule):
        return value
    text = str(value).strip().lower().replace(" ", "")
    if text == "none":
        return None
    if text == "f1":
        return ThresholdRule("f1")
    if match := _COST.match(text):
        miss, alarm = float(match[1]), float(match[2])
        if not (miss > 0 and alarm > 0):
            raise ValueError(
                f"{value!r}: with a cost of 0 one answer is always right; write two costs above 0"
            )
        return ThresholdRule("cost", miss=miss, alarm=alarm)
    if match := _RECALL.match(text):
        recall = float(match[1])
        if not 0 < recall <= 1:
            raise ValueError(
                f"{value!r}: no threshold has a recall of {recall:g}; write one above 0 and up to 1"
            )
        return ThresholdRule("recall", recall)
    if re.fullmatch(_NUMBER, text, re.ASCII):
        if not 0 < float(text) < 1:
            raise ValueError(f"{value!r} is no threshold of a score; write a number between 0 and 1")
        return ThresholdRule("fixed", float(text))
    raise ValueError(f"{value!r} is not a threshold; {_FORMS}")


Threshold = Annotated[
    ThresholdRule | None,
    BeforeValidator(parse_threshold),
    PlainSerializer(lambda rule: None if rule is None else str(rule)),
]
