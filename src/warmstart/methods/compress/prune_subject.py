"""Pruning of a subject: its layers by --layers and --keep, its training images for Taylor's scores, its recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from warmstart.analysis.samples import task_and_targets
from warmstart.analysis.sensitivity_plot import plot_sensitivity
from warmstart.console import log
from warmstart.data.batches import evaluation_batches
from warmstart.inference.inputs import InputBuffer
from warmstart.methods.blend import part_of, score_weights
from warmstart.methods.compress.channels import Group
from warmstart.methods.compress.importance import Loss, importance
from warmstart.methods.compress.layers import chosen_layers
from warmstart.methods.compress.prune import How, Target, prune
from warmstart.methods.compress.sensitivity import MOST_IMAGES, SHARES, Sensitivity, measure_sensitivity
from warmstart.methods.compress.subject import Edited, Subject
from warmstart.models.recipe import difference
from warmstart.records import finite
from warmstart.run import layout, writer
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation

_SHOWN = 5
_PER_BATCH = 16  # of Taylor's scores, whose squares are averaged over batches


def prune_subject(subject: Subject, amount: float) -> Edited:
    """The subject without the channels that matter least; with scope block, and curves that were measured, each block
    loses as much as it stands.

    Raises:
        UserError: see chosen_layers and prune.
    """
    settings, target = subject.settings, target_of(subject)
    how = How(settings.importance, settings.scope, settings.seed)
    if subject.sensitivity is not None:
        how = replace(how, share_of=subject.sensitivity.share_of(subject.built.blocks))
    losses = losses_of(subject) if settings.importance == "taylor" else ()
    smaller = prune(target, amount, how, losses)
    most = sorted(smaller.gone.items(), key=lambda each: each[1][0] / each[1][1], reverse=True)[:_SHOWN]
    told = ", ".join(f"{name} ({gone} of {units})" for name, (gone, units) in most)
    num = len(smaller.gone)
    note = f"{smaller.saved:.1%} of the MACs that were left went, in {num} groups of channels; most of {told}"
    return Edited(smaller.module, (difference(subject.built.module, smaller.module),), (note,))


def target_of(subject: Subject) -> Target:
    built = subject.built
    allowed = set(chosen_layers(subject, _refusal))
    return Target(built.module, built.head, subject.example(), built.name, allowed.__contains__)


def _refusal(layer: nn.Module) -> str | None:
    if isinstance(layer, (nn.Linear, _ConvNd)):
        return None
    return f"is a {type(layer).__name__}, which makes no channels of its own"


def losses_of(subject: Subject) -> Iterator[Loss]:
    """The task's mean loss of each batch of --calibration training images; each is for use before the next."""
    chosen, restored = subject.calibration(), subject.restored
    task, targets = task_and_targets(chosen, restored)
    preprocessing, (samples,) = restored.built.preprocessing, chosen.samples
    inputs = InputBuffer(preprocessing, subject.device, restored.built.channels_last)
    is_masked = isinstance(task, Segmentation)  # whose targets come with the batches
    for batch in evaluation_batches(
        samples, preprocessing, restored.native, _PER_BATCH, subject.settings.workers
    ):
        wanted = torch.as_tensor(batch.targets if is_masked else targets[batch.indices])
        yield partial(_loss, task, inputs(batch.images), wanted.to(subject.device))


def _loss(
    task: Classification | MultiLabel | Segmentation, images: Tensor, targets: Tensor, module: nn.Module
) -> Tensor:
    total, weight = task.objective(module(images), targets)
    return total / weight


def sensitivity_of(subject: Subject) -> Sensitivity:
    """Curves of all blocks that may lose channels, on at most MOST_IMAGES of val.

    Raises:
        UserError: see chosen_layers and groups_of.
    """
    settings, metric = subject.settings, subject.metric
    val = part_of(subject.splits["val"], MOST_IMAGES)

    def measure(module: nn.Module) -> tuple[str, float, int]:
        restored = replace(subject.restored, built=replace(subject.built, module=module))
        scored = score_weights(restored, settings.workers, subject.built.decision, val)
        return metric, scored.metrics[metric], len(val.targets)

    def scores_of(groups: Sequence[Group]) -> list[Tensor | None]:
        losses = losses_of(subject) if settings.importance == "taylor" else ()
        return importance(subject.built.module, groups, settings.importance, settings.seed, losses)

    return measure_sensitivity(target_of(subject), scores_of, subject.built.blocks, measure)


def with_sensitivity(original: Subject, folder: Path) -> Subject:
    """The original with its curves, where --sensitivity asks for them: measured once, and kept in `folder` as a table
    and a picture."""
    if not original.settings.sensitivity:
        return original
    file = folder / layout.SENSITIVITY
    if file.exists():
        found = Sensitivity.from_json(json.loads(file.read_text(encoding="utf-8")))
    else:
        found = sensitivity_of(original)
        curves = {curve.block: curve.values for curve in found.curves}
        plot_sensitivity(curves, SHARES, found.whole, found.metric, folder / layout.SENSITIVITY_PLOT)
        writer.write_json(file, finite(found.to_json()))
        log.info("%s", found.text())
    return replace(original, sensitivity=found)
