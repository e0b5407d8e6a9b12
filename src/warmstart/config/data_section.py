"""The section `data` of the schema: which images, how they become batches, what is kept of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from warmstart.config.mask_values import FlipPairs, MaskColours, MaskRemap
from warmstart.config.mix_values import Mix, MixClasses
from warmstart.config.section import Section
from warmstart.config.values import (
    Floats,
    Group,
    Limit,
    Names,
    OptionalFloat,
    OptionalInt,
    Size,
    Workers,
)


def _by_level(description: str, **bounds: Any) -> Any:
    return Field(None, description=f"{description} [default: by --augment]", **bounds)


class DataConfig(Section):
    """Where the images are and how they reach the model."""

    path: str | None = Field(
        None, description="class folders, IDX files, a table (CSV, parquet, saved data set), torchvision:NAME"
    )
    download: bool = Field(False, description="fetch a torchvision data set that is not there yet")
    label_columns: Names = Field((), description="columns of 0 and 1 that make a multi-label data set")
    group: Group = Field(
        None,
        description="column of a table, or a pattern with one (group) over the image ids: images of one"
        " group never cross a split",
    )
    masks: str | None = Field(
        None,
        description="folder of index masks, or column of a table that names them [default: found by its name]",
    )
    mask_classes: Names = Field(
        (),
        description="class names in the order of the ids of masks, or a file of them [default: classes.txt,"
        " codes.txt or classes.json beside the data, else numbers]",
    )
    ignore: OptionalInt = Field(
        None, ge=0, le=65535, description="id of masks that belongs to no class [default: 255]"
    )
    mask_remap: MaskRemap = Field((), description="other ids for ids of masks, all at once: 11=255,12=3")
    mask_colours: MaskColours = Field(
        None, description="ids for the colours of RGB masks: red.green.blue=id,... or a file"
    )
    flip_pairs: FlipPairs = Field(
        (), description="classes that change places in a mirror image: left_eye:right_eye,..."
    )
    mix: Mix = Field(
        (),
        description="other data sets in the training: PATH=SHARE of every epoch, or PATH=SHARE:5epochs,PATH=SHARE",
    )
    mix_classes: MixClasses = Field(
        (), description="where their classes differ: union, or THEIRS=OURS,... for classes of other names"
    )
    train_ratio: float = Field(0.8, gt=0, le=1, description="share of training images where we split")
    val_ratio: float = Field(0.1, ge=0, lt=1, description="share of validation images; the rest is test")
    limit: Limit = Field(
        None, description="use only a share (.1) or a number (500) of the training images, stratified"
    )
    image_size: Size = Field(None, description="HxW in pixels [default: the model's own]")
    mean: Floats = Field(None, description="channel means for pixels in [0, 1] [default: the model's own]")
    std: Floats = Field(None, description="channel deviations [default: the model's own]")
    crop_pct: OptionalFloat = Field(
        None, gt=0, le=1, description="share kept by the centre crop [default: the model's own]"
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="balanced: every class equally often, images of rare classes repeated"
    )
    mine: str | None = Field(
        None,
        description="run, or its predictions.parquet of training images: those that it got wrong come more often",
    )
    mine_weight: float = Field(2.0, gt=0, description="mine: how often such an image comes, others have 1")
    mine_prob: float = Field(0.7, gt=0, le=1, description="mine: least score of a wrong class")
    batch_size: int = Field(32, ge=1, description="images per forward and backward")
    eval_batch_size: OptionalInt = Field(
        None, ge=1, description="images per evaluation batch [default: 2 x batch size]"
    )
    cache: Literal["auto", "ram", "disk", "off"] = Field(
        "auto", description="where decoded images are kept; off decodes them in every epoch"
    )
    cache_dir: str | None = Field(
        None, description="folder of decoded images and features [default: ~/.cache/warmstart]"
    )
    feature_cache: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compute the frozen first blocks once per image and view, and train from what they gave",
    )
    views: OptionalInt = Field(
        None,
        ge=1,
        description="augmented views per image that a feature cache keeps [default: 4, or fewer epochs]; with a teacher"
        " all that the training shows, in turn",
    )
    workers: Workers = Field("auto", description="decoding threads; 0 decodes in the loop")
    max_corrupt: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images above which the run stops"
    )
    augment: Literal["auto", "none", "light", "standard", "strong"] = Field(
        "auto",
        description="auto: what the parent run recorded, else light. light: rotation 10, crop pad 2/28."
        " standard: crop scale .6, flip .5. strong: crop scale .35, flip .5, brightness, contrast and"
        " saturation .3, erase .1, randaugment 5",
    )
    rotation: OptionalFloat = _by_level("largest rotation in degrees", ge=0, le=180)
    crop_pad: OptionalFloat = _by_level("largest shift as a share of the size", ge=0, lt=0.5)
    zoom: OptionalFloat = _by_level("largest change of scale as a share", ge=0, lt=1)
    flip: OptionalFloat = _by_level("probability of a horizontal flip", ge=0, le=1)
    crop_scale: OptionalFloat = _by_level(
        "random-resized crop: smallest share of the image's area; 1 is off", gt=0, le=1
    )
    shear: OptionalFloat = _by_level("largest horizontal shear in degrees", ge=0, le=60)
    brightness: OptionalFloat = _by_level("the factor is between 1 - x (at least 0) and 1 + x", ge=0)
    contrast: OptionalFloat = _by_level("the factor is between 1 - x (at least 0) and 1 + x", ge=0)
    saturation: OptionalFloat = _by_level("as brightness; RGB images only", ge=0)
    hue: OptionalFloat = _by_level(
        "largest turn of the colours, 1 is full circle; linear (YIQ, not HSV); RGB images only", ge=0, le=0.5
    )
    blur: OptionalFloat = _by_level("probability of a blur, sigma .1 to 2 at 224 pixels", ge=0, le=1)
    erase: OptionalFloat = _by_level("probability of a black box, .02 to .33 of the area", ge=0, le=1)
    randaugment: OptionalFloat = _by_level(
        "magnitude of two operations drawn for each image (none, rotation, shears, shifts, brightness, contrast,"
        " saturation; no posterize, solarize, equalize, sharpness); 0 is off",
        ge=0,
        le=10,
    )
    mixup: OptionalFloat = _by_level(
        "alpha: pairs of images are blended, the share is from Beta(alpha, alpha); 0 is off", ge=0
    )
    cutmix: OptionalFloat = _by_level(
        "alpha: a box of the image is its partner's; beside mixup, each pair draws one of them", ge=0
    )
