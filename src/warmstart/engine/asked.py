"""What is asked of the model: the task of the data, or each of several; the metric that selects, and the view."""

from __future__ import annotations

from collections.abc import Mapping

from warmstart.config.schema import Config
from warmstart.data.augment import Augment
from warmstart.data.batches import View
from warmstart.data.dataset import Dataset
from warmstart.data.mixing import Mixing
from warmstart.engine.checks import check_kind
from warmstart.engine.job import Lane
from warmstart.engine.opening.open_inputs import Inputs
from warmstart.engine.several.lanes import combined_metric, make_lanes, settings_of_task
from warmstart.engine.several.open_tasks import check_val
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel
from warmstart.tasks.episodes import Episodes
from warmstart.tasks.task import Task, make_task, resolve_metric


def task_of(config: Config, dataset: Dataset, built: BuiltModel) -> Task:
    """Raises UserError where the model says another kind of thing than the data."""
    check_kind(built, dataset.ignore is not None)
    if config.meta.is_on:
        return Episodes(built.classes, config.meta.query, config.task.label_smoothing)
    return make_task(
        config,
        dataset.classes,
        dataset.splits["train"].targets,
        _counts(config, dataset),
        ignore=dataset.ignore,
        margin=built.margin,
        contrastive=None if built.text is None else built.text.loss,
    )


def lanes_of(config: Config, opened: Inputs, augment: Augment) -> tuple[Lane, ...]:
    """The tasks, where there are several."""
    if not opened.tasks:
        return ()
    check_val(opened.tasks)
    has_masks = any(each.dataset.ignore is not None for each in opened.tasks)
    tasks, views = [], []
    for each in opened.tasks:
        own = settings_of_task(config.task, each.dataset, has_masks)
        tasks.append(task_of(config.model_copy(update={"task": own}), each.dataset, each.built))
        views.append(view_of(each.built, each.dataset, augment, None))
    return make_lanes(config, opened.tasks, tasks, views)


def metric_of(config: Config, lanes: tuple[Lane, ...], task: Task) -> str:
    if lanes:
        return combined_metric(config.train.select_by, [lane for lane in lanes if lane.trained])
    return resolve_metric(config.train.select_by, task)


def view_of(built: BuiltModel, dataset: Dataset, augment: Augment, mixing: Mixing | None) -> View:
    native = dataset.native if dataset.mixture is None else dataset.mixture.native
    return View(built.preprocessing, native, augment, mixing, dataset.mask_rules)


def _counts(config: Config, dataset: Dataset) -> Mapping[str, float]:
    """Training images by class, or pixels: of an epoch, where balanced weights must know what is mixed in."""
    facts = dataset.facts
    counts = facts.counts["train"] if facts.pixels is None else facts.pixels
    if dataset.mixture is None or (config.task.class_weights or "").strip().lower() != "balanced":
        return counts
    if facts.pixels is not None:
        raise UserError(
            "--class-weights balanced: the pixels of what is mixed in are not counted",
            "masks of --data alone",
            "name the weights (cat=2,dog=1)",
        )
    return dataset.mixture.places_by_class(dataset.classes, config.train.epochs)
