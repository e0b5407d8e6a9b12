"""The section `meta`: episodes of a few classes and images each, from which a start for new classes is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from warmstart.config.section import Section
from warmstart.config.values import Names


class MetaConfig(Section):
    """Learning a start for unseen classes, from episodes."""

    method: Literal["none", "protonet", "maml", "anil", "reptile"] = Field(
        "none", description="learn from episodes: protonet, maml, anil or reptile"
    )
    way: int = Field(5, ge=2, description="classes of an episode")
    shot: int = Field(1, ge=1, description="images of each class to learn from in an episode")
    query: int = Field(15, ge=1, description="images of each class to answer for in an episode")
    episodes: int = Field(100, ge=1, description="episodes of an epoch; --accumulate of them make a step")
    val_classes: Names = Field(
        (), description="classes that choose the best step: names, or how many [default: as many as the way]"
    )
    test_classes: Names = Field(
        (), description="classes for the test alone: names, or how many [default: as many as the way]"
    )
    val_episodes: int = Field(100, ge=2, description="fixed episodes of a validation")
    test_episodes: int = Field(
        600, ge=2, description="fixed episodes of the test, of the start and of the best step"
    )
    inner_steps: int = Field(
        5, ge=1, description="maml, anil, reptile: steps of gradient descent within an episode"
    )
    inner_lr: float = Field(0.01, gt=0, description="maml, anil, reptile: rate of these steps")
    second_order: bool = Field(
        False, description="maml, anil: gradients through the inner steps too (more memory and time)"
    )

    temperature: float = Field(
        1.0, gt=0, description="protonet: squared distances are divided by it; 1 is the paper's formula"
    )

    @property
    def is_on(self) -> bool:
        return self.method != "none"

    @property
    def adapts(self) -> bool:
        """Whether an episode moves weights by gradient descent."""
        return self.method in ("maml", "anil", "reptile")

    @property
    def num_rows(self) -> int:
        """Images of an episode: those to learn from, class by class, then those to answer for, class by class."""
        return self.way * (self.shot + self.query)

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the outputs: an episode's classes have places, and other episodes have other classes there."""
        return tuple(f"class {number + 1} of an episode" for number in range(self.way))
