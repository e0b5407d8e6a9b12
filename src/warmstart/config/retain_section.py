"""The section `retain`: what a model must not forget while it learns something else."""

from __future__ import annotations

from pydantic import Field

from warmstart.config.section import Section


class RetainConfig(Section):
    """What must not be forgotten."""

    path: str | None = Field(
        None, description="data set that the start model knows: measured before, during and after"
    )
    replay: float = Field(
        0.0, ge=0, lt=1, description="share of each epoch that is a fixed sample of its training images"
    )
    images: int = Field(500, ge=1, description="replay: images in the sample, equally many of every class")
    l2sp: float = Field(
        0.0, ge=0, description="L2-SP: weight of half the squared distance from the start weights; 0 is off"
    )
    ewc: float = Field(
        0.0,
        ge=0,
        description="EWC: weight of half the squared distance from the start weights, each by its Fisher"
        " information; 0 is off",
    )
    ewc_images: int = Field(200, ge=1, description="EWC: training images that the Fisher information is of")
    lwf: float = Field(
        0.0, ge=0, description="LwF: weight of the divergence from the start model's answers; 0 is off"
    )
    temperature: float = Field(2.0, gt=0, description="LwF: temperature of both models' answers")
