"""The verb that proposes a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, Model, settings_of
from warmstart.config.io import validate_section
from warmstart.config.schema import TrainConfig
from warmstart.config.settings_file import check_new_file
from warmstart.config.values import parse_bytes
from warmstart.errors import UserError, closest
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.run.writer import write_text

if TYPE_CHECKING:
    from warmstart.methods.advise_report import AdviceResult
    from warmstart.methods.tryout.result import TryoutResult


def advise(
    data: Data,
    model: Model | None = None,
    *,
    goal: str = "balanced",
    device_memory: str | None = None,
    to: str | None = None,
    run: bool = False,
    **settings: Any,
) -> AdviceResult | TryoutResult:
    """Propose settings of `finetune` for `data` and `model`, with a reason for each; nothing is trained.

    With `run` the first ones of the ranking are tried by successive halving, within `time_budget` in all, and the
    best one ends as a finished run; the same call goes on with what was interrupted.

    `goal` is best, balanced, quick or edge; `device_memory` (8GB) plans for another device than this one; `to` is a
    YAML file to write, which `finetune` takes as its `config`. `settings` are those of `finetune`: what is given stays.

    Raises:
        UserError: data or a model that cannot be read or do not fit each other, an unknown goal, an amount of memory
            that is none, a file that exists; with `run` all strategies failed.
    """
    console.setup()
    from warmstart.methods.advise_facts import GOALS

    if goal not in GOALS:
        raise UserError(f"--goal {goal!r} is not known", f"one of {', '.join(GOALS)}", closest(goal, GOALS))
    try:
        planned = None if device_memory is None else parse_bytes(device_memory)
    except ValueError as error:
        raise UserError(f"--device-memory: {error}") from None
    if to is not None:
        check_new_file("--to", to)
    if run:
        if planned is not None:
            raise UserError("--device-memory with --run: it would be tried here", "one of them")
        for name, value in settings.items():
            if name in ("name", "save_as") and value is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} with --run: every strategy that is tried has a run of its own",
                    "--output-dir for the folder of all",
                    "leave it out; `warmstart export` gives the best run to others",
                )
        return _try_out(settings_of(model, data, settings), goal, to)
    from warmstart.methods.advise import propose
    from warmstart.methods.advise_report import AdviceResult, write_config

    proposal = propose(settings_of(model, data, settings), goal, planned)
    if to is not None:
        write_config(proposal, to)
    return AdviceResult(proposal, to)


def _try_out(given: dict[str, Any], goal: str, to: str | None) -> TryoutResult:
    """What was tried, and what the best run changed."""
    from warmstart.methods.tryout.result import TryoutResult
    from warmstart.methods.tryout.tryout import try_out
    from warmstart.verbs.continuing import finish

    found = try_out(given | {"time_budget": None}, goal, _seconds(given.get("time_budget")))
    best = None if found.best is None else found.tried[found.best]
    if best is not None and to is not None:
        write_text(Path(to), (Path(found.folder) / layout.BEST_CONFIG).read_text(encoding="utf-8"))
    if best is None or best.state != "finished":
        return TryoutResult(found)
    run = Run(Path(best.run))
    if not run.gains:
        finish(run.path, run.config["train"]["device"])
    told = (f"{gain['split']}: {gain['verdict']}: {gain['change']}" for gain in Run(run.path).gains)
    return TryoutResult(found, tuple(told))


def _seconds(budget: Any) -> float | None:
    """UserError: a duration that is no time."""
    found = validate_section(TrainConfig, {} if budget is None else {"time_budget": budget}).time_budget
    if found is not None and found.unit != "seconds":
        raise UserError(f"--time-budget {budget}", "a time such as 20m or 2h")
    return None if found is None else found.amount
