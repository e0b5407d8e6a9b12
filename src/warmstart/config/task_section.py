"""The section `task`: what is learned, and what it costs to be wrong."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from warmstart.config.section import Section
from warmstart.config.threshold import Threshold
from warmstart.config.values import OptionalDuration, OptionalFloat


class TaskConfig(Section):
    """What is learned."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weights: str | None = Field(None, description="balanced, or NAME=WEIGHT,... for the loss")
    margin_method: Literal["auto", "none", "cosface", "arcface"] = Field(
        "auto",
        description="margin head: classify by the angle to each class [auto: as the weights have it, else none]",
    )
    margin: OptionalFloat = Field(
        None,
        ge=0,
        lt=2,
        description="margin in training, of the cosine or (arcface) in radians [default: the head's own, else .18, .2]",
    )
    margin_scale: OptionalFloat = Field(
        None,
        gt=0,
        description="margin head: factor of the cosines in training [default: its own, else 12, 8]",
    )
    margin_eval_scale: OptionalFloat = Field(
        None, gt=0, description="margin head: factor everywhere else [default: its own, else 6, 4]"
    )
    margin_ramp: OptionalDuration = Field(
        None, description="let the margin grow from 0 over the first 10epochs or 500steps"
    )
    positive: str | None = Field(
        None, description="two classes: the one that counts as positive [default: the second]"
    )
    threshold: Threshold = Field(
        None,
        description="two classes: score from which the answer is positive, chosen on val: f1, cost=FN:FP, recall>=.95;"
        " or a number",
    )
    loss: Literal["cross_entropy", "focal"] = Field("cross_entropy", description="masks: loss of each pixel")
    focal_gamma: float = Field(
        2.0,
        ge=0,
        description="focal: how much pixels count less that are right already; 0: as in cross entropy",
    )
    focal_alpha: float = Field(0.25, gt=0, description="focal: factor of the whole")
    ce_weight: float = Field(1.0, ge=0, description="masks: weight of the pixels' loss (--loss)")
    dice_weight: float = Field(0.0, ge=0, description="masks: weight of soft Dice over the batch; 0 is off")
    dice_classes: Literal["present", "all"] = Field(
        "present", description="Dice and Tversky: mean over the classes present in the batch, or over all"
    )
    lovasz_weight: float = Field(
        0.0, ge=0, description="masks: weight of Lovasz-softmax over the batch (IoU); 0 is off"
    )
    tversky_weight: float = Field(0.0, ge=0, description="masks: weight of Tversky over the batch; 0 is off")
    tversky_alpha: float = Field(
        0.3, ge=0, le=1, description="Tversky: weight of false pixels; missed ones have 1 - alpha"
    )
