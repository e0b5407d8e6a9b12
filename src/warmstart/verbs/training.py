"""The verbs that train, each in the run directory of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, Model, check_same, keep_object, place_of, settings_of
from warmstart.config import io as config_io
from warmstart.config import phases
from warmstart.config.schema import DataConfig
from warmstart.errors import UserError
from warmstart.results import DryRunResult, FinetuneResult, PhasesResult
from warmstart.run import layout, reader
from warmstart.run.lineage import compare_with_parent

if TYPE_CHECKING:
    from torch import nn

    from warmstart.engine.beginning import Beginning
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
    loaded = config_io.load(settings_of(model, data, settings), config, preset)
    from warmstart.engine import distributed, train

    with distributed.join() as world:
        if dry_run:
            return world.on_main(lambda: _dry_run(loaded))
        run = train.finetune(loaded, world)
        return world.on_main(lambda: _finish(run, loaded.config.train.device))


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
) -> FinetuneResult:
    """Finish exactly the run that was started, from its last intact checkpoint; if only its results are missing, these.

    `data` are the arrays of a run whose data were arrays, `module` is an object like that of a run whose model
    was one; other runs find theirs themselves.

    Raises:
        UserError: nothing to resume, no intact checkpoint, or changed data.
    """
    console.setup()
    from warmstart.engine import distributed, train

    if workers is not None:
        config_io.validate_section(DataConfig, {"workers": workers})
    if data is not None:
        check_same(run, place_of(data), reader.open_run(run).resolved["data"]["path"])
    if module is not None:
        check_same(run, keep_object(module, run, None), reader.open_run(run).resolved["model"]["name"])
    with distributed.join() as world:
        folder = Path(run)
        if not _lacks_results(run):
            folder = train.resume(run, {"device": device, "workers": workers}, world)
        used = device or reader.open_run(folder).config["train"]["device"]
        return world.on_main(lambda: _finish(folder, used))


def _lacks_results(run: str) -> bool:
    """Whether a run has trained to its end, and was killed before its last file, the curves, was drawn."""
    found = reader.open_run(run)
    return found.status.get("state") == "finished" and not (found.path / layout.CURVES).exists()


def _finish(run: Path, device: str) -> FinetuneResult:
    """Measure what the run changed and draw its curves; both only read what training wrote."""
    from warmstart.analysis.curves import draw_curves
    from warmstart.analysis.gain import measure_gains
    from warmstart.inference.device import resolve_device

    gains, result = measure_gains(run, resolve_device(device), workers=0)
    draw_curves(run)
    compared = compare_with_parent(reader.Run(run))
    return FinetuneResult(str(run), result.metrics, result.num_samples, result.split, gains, compared)


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
    from warmstart.engine import continue_run as engine
    from warmstart.engine import distributed, train

    module = settings.pop("module", None)
    if module is not None:
        check_same(
            parent, keep_object(module, parent, None), reader.open_run(parent).resolved["model"]["name"]
        )
    given = settings_of(None, settings.pop("data", None), settings)
    steps = phases.read_phases(config, keep)
    if dry_run and len(steps) > 1:
        raise UserError(
            f"--dry-run of the {len(steps)} phases of {config}", "one phase: each begins where another ends"
        )
    results: list[FinetuneResult] = []
    with distributed.join() as world:
        for phase in steps:
            child = engine.Child(engine.find_parent(parent, phase.keep), continue_info)
            loaded = config_io.load(
                phase.settings(given), config, preset, child.parent.settings, phase.changes
            )
            child.check(loaded)
            if dry_run:
                return world.on_main(partial(_dry_run, loaded, child))
            run = train.finetune(loaded, world, child)
            results.append(world.on_main(partial(_finish, run, loaded.config.train.device)))
            parent = str(run)
    return results[0] if len(steps) == 1 else PhasesResult(results, [phase.keep for phase in steps])


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
    loaded = config_io.load(settings_of(model, data, settings), config, preset)
    from warmstart.verify.resume import verify_resume as prove

    return prove(loaded, steps, keep_in)
