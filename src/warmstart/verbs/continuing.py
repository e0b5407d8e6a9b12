"""From a trained run to its result, and on to the phases that come after it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.config.io import Layer, from_dict
from warmstart.console import log, log_file
from warmstart.records import RETAIN
from warmstart.results import FinetuneResult, PhasesResult
from warmstart.run import layout, reader
from warmstart.run.lineage import compare_with_parent

if TYPE_CHECKING:
    from warmstart.config.io import Loaded
    from warmstart.engine.continuing.continue_run import Child
    from warmstart.engine.continuing.parent import Parent
    from warmstart.engine.continuing.phases import Planned
    from warmstart.engine.distributed import World


def finish(run: Path, device: str) -> FinetuneResult:
    """Measure what the run changed and draw its curves: both only read what training wrote.

    The thresholds of labels, which are chosen here, are added to what the run has written for others.
    """
    from warmstart.analysis.curves import draw_curves
    from warmstart.analysis.episodes import episode_gains
    from warmstart.analysis.gain import measure_gains
    from warmstart.engine.outputs import add_thresholds
    from warmstart.inference.device import resolve_device

    pictures = _has_pictures(reader.Run(run))
    if reader.Run(run).resolved.get("episodes") is not None:
        told = episode_gains(run)
        if pictures:
            draw_curves(run)
        compared = compare_with_parent(reader.Run(run))
        return FinetuneResult(
            str(run), told[-1].best, told[-1].num_samples, told[-1].split, list(told), compared
        )
    gains, results = measure_gains(run, resolve_device(device), 0, pictures)
    with log_file(run / layout.LOG):
        add_thresholds(run)
        for gain in gains:
            if gain.split == RETAIN:
                log.info(gain.text())
    if pictures:
        draw_curves(run)
    if reader.Run(run).config["output"].get("output_style") == "ocec":
        from warmstart.analysis.ocec_files import write_ocec_files

        write_ocec_files(run, resolve_device(device))
    compared = compare_with_parent(reader.Run(run))
    metrics, split = results[0].metrics, results[0].split
    tasks = [task["name"] for task in reader.Run(run).tasks if task["trained"]]
    if tasks:
        of_each = zip(tasks, results, strict=True)
        metrics = {f"{name}.{key}": value for name, each in of_each for key, value in each.metrics.items()}
        split = ",".join(dict.fromkeys(each.split for each in results))
    num = sum(each.num_samples for each in results)
    return FinetuneResult(str(run), metrics, num, split, gains, compared)


def _has_pictures(run: reader.Run) -> bool:
    return from_dict(run.config).output.pictures


def run_child(child: Child, loaded: Loaded, world: World) -> FinetuneResult:
    """Train a child run to its result."""
    from warmstart.engine import train

    run = train.finetune(loaded, world, child)
    return world.on_main(partial(finish, run, loaded.config.train.device))


def run_phases(
    parent: Parent, planned: list[Planned], world: World, with_info: bool, above: tuple[Layer, ...] = ()
) -> list[FinetuneResult]:
    """One child after the other; `above` are settings that hold for all of them from here on."""
    from warmstart.engine.continuing.continue_run import Child, find_parent

    results: list[FinetuneResult] = []
    for number, phase in enumerate(planned):
        if results:
            parent = find_parent(results[-1].run, phase.keep)
        log.info("%s", phase.name)
        child = Child(parent, with_info, [later.to_json() for later in planned[number + 1 :]])
        loaded = phase.load(parent, above)
        child.check(loaded)
        results.append(run_child(child, loaded, world))
    return results


def resume(path: str, execution: dict[str, Any], world: World) -> FinetuneResult | PhasesResult:
    """Finish a run; of one that has trained to its end what it lacks: its results, or the phases after it."""
    from warmstart.engine import train
    from warmstart.engine.continuing.continue_run import find_parent
    from warmstart.engine.continuing.phases import left_after

    run = reader.open_run(path)
    later = left_after(run)
    lacks_results = not (run.path / (layout.CURVES if _has_pictures(run) else layout.GAINS)).exists()
    if not (run.status.get("state") == "finished" and (lacks_results or later)):
        train.resume(path, execution, world)
    result = world.on_main(lambda: finish(run.path, execution["device"] or run.config["train"]["device"]))
    if not later:
        return result
    given = {"train.device": execution["device"], "data.workers": execution["workers"]}
    above = Layer("flag", {name: value for name, value in given.items() if value is not None})
    parent = find_parent(path, later[0].keep)
    with_info = (run.path / layout.CONTINUE_INFO).exists()
    results = run_phases(parent, later, world, with_info, (above,))
    keeps = [run.resolved["parent"]["keep"], *(phase.keep for phase in later)]
    return PhasesResult([result, *results], keeps)
