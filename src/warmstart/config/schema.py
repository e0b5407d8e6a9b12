"""The one schema: the Python API, the YAML file and the flags are this object.

Two levels of frozen pydantic models. A leaf's flag is its bare name (`optim.lr` is `--lr`), except
the main leaf of a section, whose flag is the section's name (`data.path` is `--data`,
`model.name` is `--model`). A leaf's description is its help text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from warmstart.config.values import (
    Duration,
    Floats,
    Limit,
    Names,
    OptionalDuration,
    OptionalFloat,
    OptionalInt,
    Rates,
    Size,
    Unfreezing,
    Workers,
)

MAIN_LEAVES = {"data": "path", "model": "name"}  # section -> the leaf that bears the section's flag

# metric -> +1 where more is better, -1 where less is
SELECTION_METRICS = {"accuracy": 1, "loss": -1, "f1": 1, "balanced_accuracy": 1, "top5": 1, "ece": -1}


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, str_min_length=1
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_elsewhere(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `true` would pass for the number 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("this setting is not a yes or no")
        return value


class DataConfig(Section):
    """Where the images are and how they reach the model."""

    path: str | None = Field(None, description="class folders, IDX files, or a CSV or parquet file")
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
    batch_size: int = Field(32, ge=1, description="images per forward and backward")
    eval_batch_size: OptionalInt = Field(
        None, ge=1, description="images per evaluation batch [default: 2 x batch size]"
    )
    workers: Workers = Field("auto", description="decoding threads; 0 decodes in the loop")
    max_corrupt: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images above which the run stops"
    )
    augment: Literal["auto", "none", "light"] = Field(
        "auto", description="auto: what the parent run recorded, else light (rotation 10, crop pad 2/28)"
    )
    rotation: OptionalFloat = Field(
        None, ge=0, le=180, description="largest rotation in degrees [default: by --augment]"
    )
    crop_pad: OptionalFloat = Field(
        None, ge=0, lt=0.5, description="largest shift as a share of the size [default: by --augment]"
    )
    zoom: OptionalFloat = Field(
        None, ge=0, lt=1, description="largest change of scale as a share [default: by --augment]"
    )
    flip: OptionalFloat = Field(
        None, ge=0, le=1, description="probability of a horizontal flip [default: by --augment]"
    )


class ModelConfig(Section):
    """Which model, and from which weights."""

    name: str | None = Field(
        None, description="timm:NAME, torchvision:NAME or builtin:NAME [default: read from the weights]"
    )
    weights: str | None = Field(
        None,
        description="file, run directory, RUN@step, or none (random) [default: the zoo's pretrained weights]",
    )
    dropout: OptionalFloat = Field(
        None, ge=0, lt=1, description="dropout rate before the head [default: the model's own]"
    )


class TaskConfig(Section):
    """What is learned."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    class_weights: str | None = Field(None, description="balanced, or NAME=WEIGHT,... for the loss")


class AdaptConfig(Section):
    """Which blocks train, and at which rate."""

    freeze: Names = Field((), description="blocks to freeze: names, globs (conv*), backbone")
    freeze_bn: bool = Field(False, description="freeze statistics and affine parameters of every BatchNorm")
    lrs: Rates = Field((), description="rates by block, e.g. backbone=1e-5,head=1e-4; first match wins")
    unfreeze: Unfreezing = Field((), description="EPOCH:BLOCK,... e.g. 0:head,2:blocks.5,6:all")


class OptimConfig(Section):
    """Optimizer and learning-rate schedule."""

    optimizer: str = Field("adamw", description="adamw, sgd, or a name of timm's optimizer factory")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    min_lr: float = Field(
        0.0, ge=0, description="floor of the schedule at --lr; rates of --lrs have it in proportion"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd and its relatives)")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay; biases and norms have none")
    scheduler: Literal["none", "cosine", "step", "exponential", "linear", "plateau"] = Field(
        "cosine", description="shape of the learning rate over the run"
    )
    scheduler_step: OptionalDuration = Field(
        Duration(10, "epochs"), description="step: interval between drops"
    )
    scheduler_gamma: OptionalFloat = Field(
        None, gt=0, le=1, description="factor of step (.5), exponential (.95, per epoch) and plateau (.95)"
    )
    scheduler_patience: int = Field(
        4, ge=0, description="plateau: evaluations without a lower val loss before a drop"
    )
    warmup: OptionalDuration = Field(
        None, description="linear warmup: 2epochs, 500steps, or a share of the run (.1)"
    )
    clip: OptionalFloat = Field(1.0, gt=0, description="largest gradient norm; none: no clipping")
    accumulate: int = Field(1, ge=1, description="batches per optimizer step")


class TrainConfig(Section):
    """How long, how often measured, and what counts as better."""

    epochs: int = Field(10, ge=1, description="passes over the training images")
    max_steps: OptionalInt = Field(
        None, ge=1, description="stop after so many optimizer steps (shortens the schedule)"
    )
    time_budget: OptionalDuration = Field(
        None,
        description="time for steps and validations, e.g. 10m: becomes steps by a probe, plus a hard stop",
    )
    eval_every: OptionalDuration = Field(Duration(1, "epochs"), description="interval between validations")
    save_every: OptionalDuration = Field(Duration(1, "epochs"), description="interval between checkpoints")
    log_every: OptionalDuration = Field(
        Duration(10, "steps"), description="interval between rows of training metrics"
    )
    patience: OptionalInt = Field(None, ge=1, description="stop after so many validations without a new best")
    min_delta: float = Field(0.0, ge=0, description="smallest gain that counts as a new best")
    select_by: Literal["accuracy", "loss", "f1", "balanced_accuracy", "top5", "ece"] = Field(
        "accuracy", description="validation metric that chooses the best checkpoint"
    )
    precision: Literal["float32", "bf16", "fp16", "auto"] = Field(
        "float32", description="arithmetic of the forward pass"
    )
    ema: OptionalFloat = Field(
        None, gt=0, lt=1, description="decay of averaged weights, which are then evaluated and saved"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of split, order, augmentation and new weights")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")


class OutputConfig(Section):
    """Where the run is written."""

    output_dir: str | None = Field(None, description="the run directory itself; must be new or empty")
    runs_dir: str = Field("runs", description="folder that holds run directories")
    name: str | None = Field(None, description="name of the run directory [default: DATA-MODEL-TIME]")
    save_as: str | None = Field(None, description="also write the best weights as FILE.pt (bare state_dict)")
    tensorboard: bool = Field(True, description="write TensorBoard events to RUN/tb")


class Config(Section):
    """A whole run, as asked for. Never changed after parsing; what is computed goes to resolved.json."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    adapt: AdaptConfig = AdaptConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    output: OutputConfig = OutputConfig()


class Leaf(NamedTuple):
    """One setting: `section.name` in YAML, `--flag` on the command line."""

    section: str
    name: str
    flag: str
    description: str
    default: Any
    annotation: Any

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"


def leaves() -> Iterator[Leaf]:
    """Every setting of the schema, in the order of the file."""
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, Section)
        for name, leaf in model.model_fields.items():
            flag = section if MAIN_LEAVES.get(section) == name else name
            yield Leaf(
                section, name, flag.replace("_", "-"), leaf.description or "", leaf.default, leaf.annotation
            )
