"""The section `distill`: other models whose answers are learned beside the labels."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from warmstart.config.section import Section
from warmstart.config.values import Names, parse_pairs, written_pairs


def parse_class_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """`ours=theirs,...`; no class of ours twice."""
    pairs = tuple(
        (str(ours), str(theirs)) for ours, theirs in parse_pairs(value, "=", "our_class=their_class")
    )
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"{value!r} names a class twice")
    return pairs


ClassPairs = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(parse_class_pairs),
    written_pairs("="),
]


class DistillConfig(Section):
    """What is learned from other models."""

    teacher: Names = Field(
        (),
        description="runs, files of weights or FILE.onnx whose answers are learned beside the labels; of several"
        " the mean of their probabilities",
    )
    temperature: float = Field(4.0, gt=0, description="temperature of both models' answers")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the teacher's answers; the labels have 1 - alpha",
    )
    hints: float = Field(
        0.0,
        ge=0,
        description="weight of the distance from the teacher's maps of the same resolution, through a projection"
        " that is dropped at the end; 0 is off",
    )
    classes: ClassPairs = Field(
        (), description="teacher's names of classes that it calls otherwise: OURS=THEIRS,..."
    )
