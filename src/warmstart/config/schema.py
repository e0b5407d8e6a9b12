"""The one schema: the Python API, the YAML file and the flags are this object.

Two levels of frozen pydantic models. A leaf's flag is its bare name (`optim.lr` is `--lr`), except
the main leaf of a section, whose flag is the section's name (`data.path` is `--data`,
`model.name` is `--model`); those of optional sections bear its name (`--retain.replay`). A leaf's
description is its help text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field

from warmstart.config.data_section import DataConfig
from warmstart.config.distill_section import DistillConfig
from warmstart.config.lora_section import LoraConfig
from warmstart.config.meta_section import MetaConfig
from warmstart.config.retain_section import RetainConfig
from warmstart.config.section import Section
from warmstart.config.task_section import TaskConfig
from warmstart.config.tasks_section import TasksConfig
from warmstart.config.text_section import TextConfig
from warmstart.config.unfreezing import Unfreezing
from warmstart.config.values import (
    Cadence,
    Duration,
    Names,
    OptionalCadence,
    OptionalDuration,
    OptionalFloat,
    OptionalInt,
    Rates,
)

MAIN_LEAVES = {  # section -> the leaf that bears the section's flag
    "data": "path",
    "model": "name",
    "retain": "path",
    "distill": "teacher",
    "tasks": "data",
    "meta": "method",
}
# Optional sections, whose other flags are --section.leaf.
PREFIXED = frozenset({"retain", "lora", "text", "distill", "tasks", "meta"})
OWN_FLAGS = {"distill": "teacher"}  # flags of main leaves that are not the section's name

SelectBy = Literal[
    "auto",
    "accuracy",
    "loss",
    "f1",
    "balanced_accuracy",
    "top5",
    "ece",
    "map",
    "f1_micro",
    "exact_match",
    "f1_positive",
    "precision_positive",
    "recall_positive",
    "miou",
    "fscore",
    "fscore_per_image",
    "fscore_per_batch",
    "combined",
]
# metric -> +1 where more is better, -1 where less is; each task has some of them (`metrics` in tasks/)
SELECTION_METRICS = {
    name: -1 if name in ("loss", "ece") else 1 for name in get_args(SelectBy) if name != "auto"
}

# Leaves that `--help-all` shows, and `--help` does not; with the section where another one shows a leaf of that name.
_RARE_NAMES = (
    "rotation crop_pad zoom flip crop_scale shear brightness contrast saturation hue blur erase randaugment mixup"
    " cutmix max_corrupt scheduler_step scheduler_gamma scheduler_patience log_every min_delta compile keep_checkpoints"
    " gradient_checkpointing rescue stage_warmup eval_batch_size"
    " margin_method margin margin_scale margin_eval_scale margin_ramp positive threshold mine mine_weight"
    " mine_prob"
    " loss focal_gamma focal_alpha ce_weight dice_weight dice_classes lovasz_weight tversky_weight tversky_alpha"
    " output_style"
    " masks mask_classes ignore mask_remap mask_colours flip_pairs"
    " head prompts tower captions"
    " views crop_pct mix_classes replay images l2sp ewc ewc_images lwf temperature"
    " hints distill.classes"
    " download alpha lora.dropout targets kind bits"
    " meta.method way shot query episodes val_classes test_classes val_episodes test_episodes inner_steps inner_lr"
    " second_order"
    " tasks.data tasks.first tasks.weights tasks.sampling tasks.select"
)
RARE = frozenset(_RARE_NAMES.split())


class ModelConfig(Section):
    """Which model, and from which weights."""

    name: str | None = Field(
        None, description="timm:NAME, torchvision:NAME or builtin:NAME [default: read from the weights]"
    )
    weights: str | None = Field(
        None,
        description="file, folder or glob (its best), run, RUN@step, or none (random)"
        " [default: the zoo's pretrained weights]",
    )
    dropout: OptionalFloat = Field(
        None, ge=0, lt=1, description="dropout rate before the head [default: the model's own]"
    )


class AdaptConfig(Section):
    """Which blocks train, and at which rate."""

    freeze: Names = Field(
        (),
        description="blocks to freeze: names, globs (conv*), backbone, 'backbone<3' (its first 3), 'backbone>.5'",
    )
    freeze_bn: bool = Field(False, description="freeze statistics and affine parameters of every BatchNorm")
    lrs: Rates = Field((), description="rates by block, e.g. backbone=1e-5,head=1e-4; first match wins")
    layer_decay: OptionalFloat = Field(
        None, gt=0, le=1, description="rate of a block: base rate x DECAY^(blocks above it); --lrs wins"
    )
    unfreeze: Unfreezing = Field(
        (),
        description="stages WHEN:BLOCKS[@RATE],... in quotes, e.g. '0:head,20:backbone>.5,f1>=.80:all@1e-5'; WHEN:"
        " an epoch, 500steps, plateau, or a metric of val",
    )


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
        4, ge=0, description="plateau: evaluations without a lower val loss before a drop (or a stage)"
    )
    warmup: OptionalDuration = Field(
        None, description="linear warmup: 2epochs, 500steps, or a share of the run (.1)"
    )
    stage_warmup: OptionalDuration = Field(
        None, description="linear warmup of each later stage of --unfreeze, once: 2epochs or 500steps"
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
    eval_every: OptionalCadence = Field(
        Cadence(((Duration(1, "epochs"), None),)),
        description="interval between validations, or several with their limits: 5epochs:20epochs,10epochs",
    )
    save_every: OptionalDuration = Field(
        Duration(1, "epochs"), description="interval between checkpoints: 500steps, 2epochs or 10m"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="newest checkpoints that are kept; the best one is kept besides"
    )
    rescue: int = Field(
        3,
        ge=0,
        description="how many times a run goes back to its last checkpoint, and on with half the rate, after a loss"
        " or gradient that is not finite; 0: it stops",
    )
    log_every: OptionalDuration = Field(
        Duration(10, "steps"), description="interval between rows of training metrics"
    )
    patience: OptionalInt = Field(None, ge=1, description="stop after so many validations without a new best")
    min_delta: float = Field(0.0, ge=0, description="smallest gain that counts as a new best")
    select_by: SelectBy = Field(
        "auto",
        description="validation metric that chooses the best checkpoint"
        " [auto: accuracy; multi-label: map; masks: miou; several tasks: combined, the mean of these]",
    )
    precision: Literal["float32", "bf16", "fp16", "auto"] = Field(
        "float32", description="arithmetic of the forward pass"
    )
    compile: bool = Field(
        False, description="torch.compile for training steps; needs a compiler, and a minute before step 1"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="compute what trained blocks give on their way again in the backward pass, not keep it: less"
        " memory, and about a third more time for a step",
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
    save_as: str | None = Field(
        None,
        description="also write the best weights as FILE.pt (bare state_dict) or FILE.safetensors (with classes,"
        " preprocessing and threshold)",
    )
    output_style: Literal["warmstart", "ocec"] = Field(
        "warmstart",
        description="ocec: document 001's files too, in RUN/ocec (names with epoch and F1, history.json)",
    )
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
    retain: RetainConfig = RetainConfig()
    lora: LoraConfig = LoraConfig()
    text: TextConfig = TextConfig()
    distill: DistillConfig = DistillConfig()
    tasks: TasksConfig = TasksConfig()
    meta: MetaConfig = MetaConfig()


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

    @property
    def is_rare(self) -> bool:
        return self.name in RARE or self.path in RARE


def leaves() -> Iterator[Leaf]:
    """Every setting of the schema, in the order of the file."""
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, Section)
        for name, leaf in model.model_fields.items():
            flag = f"{section}.{name}" if section in PREFIXED else name
            flag = OWN_FLAGS.get(section, section) if MAIN_LEAVES.get(section) == name else flag
            yield Leaf(
                section, name, flag.replace("_", "-"), leaf.description or "", leaf.default, leaf.annotation
            )


def flag_of(section: type[Section], name: str | int) -> str:
    """The flag of a leaf, without its dashes, by the class of its section; a command's own section has its names."""
    owners = {key: field.annotation for key, field in Config.model_fields.items()}
    flags = (leaf.flag for leaf in leaves() if leaf.name == name and owners[leaf.section] is section)
    return next(flags, str(name).replace("_", "-"))
