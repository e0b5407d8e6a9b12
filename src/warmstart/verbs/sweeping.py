"""The verb that tries settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.config import io as config_io
from warmstart.config.sweep_section import SweepConfig, problems
from warmstart.errors import UserError, closest
from warmstart.run import layout
from warmstart.run.reader import Run

if TYPE_CHECKING:
    from warmstart.methods.sweep.request import Request
    from warmstart.methods.sweep.result import Swept


def sweep(config: str, *, set: list[str] | Mapping[str, Any] | None = None, **settings: Any) -> Swept:
    """Train the settings of a YAML file with some of them varied, and keep the best by val; only that is tested.

    `set` says what is varied (`["lr=2e-4..8e-4:log", "dropout=.1,.2"]` or `{"dropout": [.1, .2]}`), `settings` are
    those of `warmstart sweep` (`method="tpe"`, `trials=30`, `prune="halving"`, `devices="cuda:0,cuda:1"`). Called again
    with the same `output_dir`, or with that folder as `config`, what was interrupted goes on.

    Raises:
        UserError: every problem of the settings at once, before the first run; a folder or storage of another sweep, or
            one that does not answer; no trial that works; an interruption.
    """
    console.setup()
    from warmstart.methods.sweep.request import check_packages

    given = {name: value for name, value in {"set": set, **settings}.items() if value is not None}
    unknown = [name for name in given if name not in SweepConfig.model_fields]
    if unknown:
        raise UserError(
            f"unknown setting {unknown[0]!r}",
            f"one of {', '.join(SweepConfig.model_fields)}",
            closest(unknown[0], SweepConfig.model_fields),
        )
    check_packages(str(given.get("engine", "local")))
    from warmstart.methods.sweep.flow import sweep as run_sweep

    request, goes_on = _asked(config, given)
    found = run_sweep(request, goes_on)
    _finish_best(found)
    return found


def _asked(config: str, given: dict[str, Any]) -> tuple[Request, bool]:
    from warmstart.methods.sweep import request

    if (Path(config) / layout.SWEEP_REQUEST).exists():
        settings, base, cwd = request.go_on(Path(config), given)
        return request.begin(Path(config), _checked(settings), base, cwd)
    if "set" not in given:
        raise UserError(
            "--set is missing: nothing is varied",
            "a setting and its values, or the folder of a sweep to go on with",
            "--set lr=2e-4..8e-4:log",
        )
    settings = _checked(config_io.validate_section(SweepConfig, given))
    base = config_io.load({}, config)
    request.check(settings, config, base)
    folder = Path(settings.output_dir or Path(config).with_name(f"{Path(config).stem}-sweep"))
    return request.begin(folder, settings, base, Path.cwd())


def _checked(settings: SweepConfig) -> SweepConfig:
    if told := problems(settings):
        raise UserError.of_problems(told, "the settings")
    return settings


def _finish_best(found: Swept) -> None:
    """What the best run's own command would have done after training: its gain over the start, on test too."""
    best = found.best_row
    if found.waits or best is None or best.run is None or not layout.is_run(Path(best.run)):
        return
    run = Run(Path(best.run))
    if not (run.path / layout.GAINS).exists():
        from warmstart.verbs import continuing

        continuing.finish(run.path, run.config["train"]["device"])
