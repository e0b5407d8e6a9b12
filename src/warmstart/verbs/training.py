"""The verbs that train, each in the run directory of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import (
    Data,
    Model,
    check_same,
    keep_object,
    place_of,
    settings_of,
    teaching_layer,
)
from warmstart.config import io as config_io
from warmstart.config import phases
from warmstart.config.schema import DataConfig
from warmstart.config.tasks_rules import task_name_of
from warmstart.errors import UserError
from warmstart.results import DryRunResult, FinetuneResult, PhasesResult
from warmstart.run import layout, reader
from warmstart.verbs import compressing, continuing

if TYPE_CHECKING:
    from torch import nn

    from warmstart.engine.beginning import Beginning
    from warmstart.methods.compress.flow import Compressed
    from warmstart.verify.resume import Proof


def finetune(
    model: Model | None = None,
    data: Data | None = None,
    *,
    preset: str | None = None,
    config: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Train a better model from `model` (file of weights, run, zoo name, or an nn.Module) on `data`.

    Of an nn.Module a copy is trained, from its own weights unless `weights` names others.
    `data` is a path, `torchvision:NAME`, or arrays: (images, labels), or a dict of such pairs by split, with
    uint8 images (N, H, W[, C]) and labels as numbers, names, or 0 and 1 (N, K).
    `settings` are the schema's leaves by flag name (`lr=5e-4`, `batch_size=64`, `freeze="backbone"`).

    Raises:
        UserError: every problem of the settings at once; bad data or weights; an interruption.
    """
    console.setup()
    return _trained(config_io.load(settings_of(model, data, settings), config, preset), dry_run)


def _trained(loaded: config_io.Loaded, dry_run: bool) -> FinetuneResult | DryRunResult:
    from warmstart.engine import distributed, train

    with distributed.join() as world:
        if dry_run:
            return world.on_main(lambda: _dry_run(loaded))
        run = train.finetune(loaded, world)
        return world.on_main(lambda: continuing.finish(run, loaded.config.train.device))


def distill(
    model: Model | None = None,
    data: Data | None = None,
    *,
    teacher: str | Sequence[str] | None = None,
    preset: str | None = None,
    config: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Train the student `model` on the labels and on the answers of `teacher`: a run, weights, FILE.onnx, or several.

    `data` is by default that of the first teacher that is a run, divided as it was there; all else as `finetune`.

    Raises:
        UserError: as `finetune`; no teacher, or one of another task or other classes.
    """
    console.setup()
    given = settings_of(model, data, {**settings, "teacher": teacher})
    layer = teaching_layer(given)
    loaded = config_io.load(given, config, preset, layer)
    if layer is not None and loaded.origins.get("data.path") != layer.origin:
        loaded = config_io.load(given, config, preset)  # of the teacher's data nothing is known then
    if not loaded.config.distill.teacher:
        raise UserError("--teacher is missing", "the run, weights or FILE.onnx to learn from")
    return _trained(loaded, dry_run)


def meta(
    model: Model | None = None,
    data: Data | None = None,
    *,
    preset: str | None = None,
    config: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Learn a start for classes that nobody has seen yet, from episodes of the classes of `data`; see `finetune`.

    The method is `meta` (protonet, maml, anil or reptile; by default protonet, or what the `config` says). What comes
    out is a run whose weights `finetune` starts from.

    Raises:
        UserError: as `finetune`; too few classes or images for the episodes; masks or several labels per image.
    """
    if config is None and preset is None:
        settings = {"meta": "protonet", **settings}
    loaded = config_io.load(settings_of(model, data, settings), config, preset)
    if not loaded.config.meta.is_on:
        raise UserError(
            "the settings name no method of learning from episodes",
            "protonet, maml, anil or reptile",
            "--meta protonet, or in YAML meta: {method: protonet}",
        )
    return finetune(model, data, preset=preset, config=config, dry_run=dry_run, **settings)


def multitask(
    model: Model | None = None,
    data: Data | None = None,
    *,
    tasks: str | Mapping[str, str] | None = None,
    config: str | None = None,
    **settings: Any,
) -> FinetuneResult | DryRunResult:
    """Train one backbone with a head for each of several data sets: `data`, and `tasks` (name=path,...).

    `settings` are those of `finetune`.

    With `weights` and `retain` naming the same finished run, `data` is a task more: the heads of the run's tasks are
    kept, and what these lose is measured.

    Raises:
        UserError: as `finetune`; tasks that are called alike or lie at one place, weights that sum to zero, settings
            that only one task can have.
    """
    given = dict(settings)
    if tasks is not None:
        given["tasks"] = tasks if isinstance(tasks, str) else dict(tasks)
    elif config is None and not {"tasks_first", "tasks.first"} & given.keys() and data is not None:
        given["tasks_first"] = task_name_of(place_of(data))
    return finetune(model, data, config=config, **given)


def _dry_run(loaded: config_io.Loaded, beginning: Beginning | None = None) -> DryRunResult:
    from warmstart.engine import train

    prepared, measured = train.dry_run(loaded, beginning)
    plan = train.plan_record(prepared.job)["rows"]
    cost = {"seconds": train.expected_seconds(prepared.job, measured), **measured.to_json()}
    return DryRunResult({"plan": plan, "cost": cost, "resolved": prepared.resolved})


def resume(
    run: str,
    *,
    device: str | None = None,
    workers: int | None = None,
    data: Data | None = None,
    module: nn.Module | None = None,
) -> FinetuneResult | PhasesResult | Compressed:
    """Finish exactly the run that was started, from its last intact checkpoint, and go on with the phases after it.

    The folder of a compression is one as well.

    `data` are the arrays of a run whose data were arrays, `module` is an object like that of a run whose model
    was one; other runs find theirs themselves.

    Raises:
        UserError: nothing to resume, no intact checkpoint, or changed data.
    """
    console.setup()
    from warmstart.engine import distributed

    if workers is not None:
        config_io.validate_section(DataConfig, {"workers": workers})
    if (made := compressing.go_on(run, {"device": device, "workers": workers})) is not None:
        return made
    if data is not None:
        check_same(run, place_of(data), reader.open_run(run).resolved["data"]["path"])
    if module is not None:
        check_same(run, keep_object(module, run, None), reader.open_run(run).resolved["model"]["name"])
    with distributed.join() as world:
        return continuing.resume(run, {"device": device, "workers": workers}, world)


def continue_run(
    parent: str,
    *,
    config: str | None = None,
    keep: str = "all",
    preset: str | None = None,
    continue_info: bool = False,
    dry_run: bool = False,
    **settings: Any,
) -> FinetuneResult | PhasesResult | DryRunResult:
    """Go on from a run, RUN@step or a foreign checkpoint in a child run, with the changes given; see `finetune`.

    `keep`: all (the state of the last checkpoint; more epochs or another rate), optimizer (weights and moments;
    step count and schedule new) or weights (of the best step). The parent's best is the bar to beat. A `config` with
    a list `phases:` makes a child of a child for each. `module` is an object like that of a run whose model was one.

    Raises:
        UserError: as `finetune`; a parent that is running, of other classes or of another architecture; settings that
            contradict what is to be kept.
    """
    console.setup()
    from warmstart.engine import distributed
    from warmstart.engine.continue_run import Child, find_parent
    from warmstart.engine.parent import OWN_PLACES
    from warmstart.engine.phases import plan_phases

    module = settings.pop("module", None)
    if module is not None:
        check_same(
            parent, keep_object(module, parent, None), reader.open_run(parent).resolved["model"]["name"]
        )
    given = settings_of(None, settings.pop("data", None), settings)
    steps = phases.read_phases(config, keep)
    if dry_run and steps[0].number:
        raise UserError(f"--dry-run of the phases of {config}", "one run: a phase begins where another ends")
    with distributed.join() as world:
        found = find_parent(parent, steps[0].keep)
        if config is not None and steps[0].number:
            planned = world.on_main(lambda: plan_phases(found, steps, given, config, preset))
            results = continuing.run_phases(found, planned, world, continue_info)
            return PhasesResult(results, [phase.keep for phase in steps])
        # A run's own config.yaml names its own places, and the weights that it began with.
        is_recorded = (
            config is not None and Path(config).name == layout.CONFIG and layout.is_run(Path(config).parent)
        )
        without = (*OWN_PLACES, "model.weights") if is_recorded else ()
        child = Child(found, continue_info)
        loaded = config_io.load(given, config, preset, found.settings, without=without)
        child.check(loaded)
        if dry_run:
            return world.on_main(partial(_dry_run, loaded, child))
        return continuing.run_child(child, loaded, world)


def verify_resume(
    model: str | None = None,
    data: str | None = None,
    *,
    preset: str | None = None,
    config: str | None = None,
    steps: int = 24,
    keep_in: str | None = None,
    **settings: Any,
) -> Proof:
    """Prove that a run with these settings, killed and resumed, ends to the bit as one that was not; see `finetune`.

    Both runs have `steps` steps, and lie in a temporary folder unless `keep_in` names a new one.
    """
    console.setup()
    places = tuple(f"output.{name}" for name in ("output_dir", "name", "save_as"))  # both runs have their own
    loaded = config_io.load(settings_of(model, data, settings), config, preset, without=places)
    from warmstart.verify.resume import verify_resume as prove

    return prove(loaded, steps, keep_in)
