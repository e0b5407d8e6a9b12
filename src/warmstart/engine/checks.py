"""What only the data, the model and the plan together can contradict; told before the first step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from warmstart.config.ocec import is_ocec, shape_of
from warmstart.engine.job import Job
from warmstart.engine.optimizer import check_zeros
from warmstart.errors import UserError, closest, listing
from warmstart.models.build import BuiltModel
from warmstart.models.heads import is_pair
from warmstart.models.margin import named
from warmstart.models.recipe import SPARSE

# The least that such optimizers train from nothing with; document 003 tunes with SGD at .1 (3.13).
_RATES_FOR_RANDOM = {"sgd": 0.1, "adam": 0.02, "adamw": 0.02, "nadam": 0.02, "nadamw": 0.02, "radam": 0.02}


def check_settings(job: Job) -> None:
    """Raises UserError for settings that this data set, model or plan cannot have; of several tasks, any of them."""
    if job.built.recipe is not None and SPARSE in job.built.recipe.kinds:
        check_zeros(job.config.optim, job.device)
    for own in [job.of(lane) for lane in job.trained_lanes] or [job]:
        _check_one(own)


def _check_one(job: Job) -> None:
    num = len(job.dataset.splits["train"])
    if job.config.data.sampler == "balanced" and job.dataset.splits["train"].targets.ndim > 1:
        raise UserError(
            "--sampler balanced needs one class per image, and these images have several labels",
            "--sampler shuffle",
            "--class-weights balanced weighs rare labels instead",
        )
    if job.task.name == "multi-label" and is_pair(job.built.module.get_submodule(job.built.head)):
        raise UserError(
            f"{job.built.name} has one logit for two classes that exclude each other, and these are two labels",
            "one class per image, or three labels or more",
            "another --model",
        )
    if job.config.output.output_style == "ocec" and (job.task.name, len(job.task.classes)) != (
        "classification",
        2,
    ):
        raise UserError(
            f"--output-style ocec writes F1 and ROC of a yes or no, and these data are of {job.task.name} with "
            f"{len(job.task.classes)} classes",
            "two classes, the second of which counts as positive",
            "leave --output-style out",
        )
    _check_texts(job)
    _check_episodes(job)
    _check_ocec_head(job)
    _check_remedies(job)
    has_live_norms = any(row.norms == "train" for row in job.plan.rows)
    if has_live_norms and min(num, job.batch_size) < 2 * job.world.size > 2:
        raise UserError(
            f"BatchNorm layers cannot learn from single images, and --batch-size {job.config.data.batch_size} is "
            f"divided among {job.world.size} processes",
            f"--batch-size {2 * job.world.size} or more",
            "or hold the norms still with --freeze-bn",
        )
    if has_live_norms and min(num, job.batch_size) == 1:
        raise UserError(
            "BatchNorm layers cannot learn from batches of one image",
            "--batch-size 2 or more and at least 2 training images",
            "or hold the norms still with --freeze-bn",
        )
    _check_stages(job)
    rule = job.config.task.threshold
    is_chosen = rule is not None and rule.kind != "fixed"
    if is_chosen and "val" in job.dataset.splits:
        _check_both_sides(job)
    if "val" not in job.dataset.splits:
        needy = {
            f"--threshold {rule}": is_chosen,
            "--patience": job.config.train.patience is not None,
            "--scheduler plateau": job.config.optim.scheduler == "plateau",
            **{f"--unfreeze {stage.trigger}": not stage.trigger.is_timed for stage in job.plan.stages},
        }
        for setting in (name for name, is_set in needy.items() if is_set):
            raise UserError(
                f"{setting} needs validation images, and there are none", "a val split", "raise --val-ratio"
            )


def _check_episodes(job: Job) -> None:
    """An episode is one batch on one model."""
    method = job.config.meta.method
    if job.config.meta.is_on and job.world.size > 1:
        raise UserError(
            f"--meta {method}: an episode cannot be divided among {job.world.size} processes",
            "one process",
            "start it without torchrun; --accumulate has several episodes in a step",
        )
    if job.config.meta.is_on and job.built.text is not None:
        raise UserError(
            f"--meta {method}: {job.built.name} answers by texts, and the classes of an episode have none",
            "a model with a linear classifier",
            f"--model {job.built.name.partition('#')[0]}#linear, or another --model",
        )


def check_kind(built: BuiltModel, has_masks: bool) -> None:
    """Raises UserError where the model says another kind of thing than the data."""
    if built.segments == has_masks:
        return
    found = "a class of every pixel" if built.segments else "a class of every image"
    raise UserError(
        f"{built.name} says {found}, and the data have {'masks' if has_masks else 'no masks'}",
        "a segmenting model for masks, a classifier for labels",
        "--model builtin:microsegformer, smp:Unet/resnet18, torchvision:deeplabv3_resnet50 or hf:FOLDER of a "
        "SegFormer segment"
        if has_masks
        else "name folders of images and masks, or another --model",
    )


def _check_texts(job: Job) -> None:
    """A loss between images and texts needs images of one class each."""
    text = job.built.text
    if text is not None and text.loss is not None and job.train_view.mixing is not None:
        raise UserError(
            "--text.head contrastive compares whole images with texts, and --mixup or --cutmix makes images of two",
            "neither of the two",
            "--mixup 0 --cutmix 0, or --text.head zero-shot",
        )


def _check_stages(job: Job) -> None:
    """Times of stages in steps, and the metrics that stages wait for; of both, the config knows only names."""
    per_epoch = job.pace.steps_per_epoch
    timed = [
        (step, stage.trigger)
        for stage in job.plan.stages
        if (step := stage.trigger.step(per_epoch)) is not None
    ]
    for (before, first), (after, second) in pairwise(timed):
        if after <= before:
            raise UserError(
                f"--unfreeze {second} is step {after}, not after the stage before it ({first}, step {before})",
                f"stages in the order in which they begin; an epoch has {per_epoch} steps",
            )
    for trigger in (stage.trigger for stage in job.plan.stages):
        if trigger.metric and trigger.metric not in job.task.metrics:
            raise UserError(
                f"--unfreeze {trigger}: a run of {job.task.name} does not measure {trigger.metric}",
                listing(job.task.metrics),
                closest(trigger.metric, job.task.metrics),
            )


def _check_ocec_head(job: Job) -> None:
    """The files of --output-style ocec name an architecture, and with it the kind of its last layer."""
    margin, bare = job.built.margin, job.built.name.removeprefix("builtin:")
    shape = shape_of(bare) if is_ocec(bare) else None
    if job.config.output.output_style != "ocec" or bool(shape and shape.margin) == (margin is not None):
        return
    method = "" if margin is None else margin.method
    raise UserError(
        f"--output-style ocec: {job.built.name} with {named(margin)} is no model of document 001",
        "its last layer as the model's name says it",
        "leave --output-style out"
        if shape is None
        else f"--model builtin:{replace(shape, margin=method).name}, and leave --margin-method out",
    )


def _check_both_sides(job: Job) -> None:
    counts = job.dataset.facts.counts["val"]
    if missing := [name for name, num in counts.items() if not num]:
        raise UserError(
            f"--threshold {job.config.task.threshold}: val has no image of {missing[0]!r}",
            "val images of both classes",
            "raise --val-ratio, or give the threshold as a number",
        )


def _check_remedies(job: Job) -> None:
    """EWC and LwF hold on to answers: there must be some, in classes."""
    asked = [name for name in ("ewc", "lwf") if getattr(job.config.retain, name)]
    for name in asked:
        if job.dataset.ignore is not None:
            raise UserError(
                f"--retain.{name} is for labels of whole images, and these data have masks",
                "--retain.l2sp or --retain.replay",
            )
        if job.built.head_change.kind == "new":
            raise UserError(
                f"--retain.{name} holds on to the answers of the start model, and its head is new "
                f"({job.built.head_change.reason})",
                "start weights that know some of the classes",
                "--retain.l2sp or --retain.replay",
            )


def high_rate(job: Job) -> list[str]:
    """The warning for blocks below the head that have weights already, and a rate that is meant for random ones."""
    name, source = job.config.optim.optimizer, job.built.source
    least = _RATES_FOR_RANDOM.get(name.lower())
    rows = [row for row in job.plan.rows[:-1] if row.mode == "full"]
    highest = max((job.plan.rate(row, job.plan.last_stage) for row in rows), default=0.0)
    if least is None or source["kind"] not in ("pretrained", "file") or highest < least:
        return []
    return [
        f"{name} at {highest:g} is a rate for random weights, and these come from "
        f"{source['path'] or source['kind']}: the first steps may undo what they know. Try --lr {highest / 10:g}; "
        f"--lrs head={highest:g} beside it leaves a new head its rate"
    ]
