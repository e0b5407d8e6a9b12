"""The verb that proposes a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, Model, settings_of
from warmstart.config.settings_file import check_new_file
from warmstart.config.values import parse_bytes
from warmstart.errors import UserError, closest

if TYPE_CHECKING:
    from warmstart.methods.advise_report import AdviceResult


def advise(
    data: Data,
    model: Model | None = None,
    *,
    goal: str = "balanced",
    device_memory: str | None = None,
    to: str | None = None,
    **settings: Any,
) -> AdviceResult:
    """Propose settings of `finetune` for `data` and `model`, with a reason for each; nothing is trained.

    `goal` is best, balanced, quick or edge; `device_memory` (8GB) plans for another device than this one; `to` is a
    YAML file to write, which `finetune` takes as its `config`. `settings` are those of `finetune`: what is given stays.

    Raises:
        UserError: data or a model that cannot be read or do not fit each other, an unknown goal, an amount of memory
            that is none, a file that exists.
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
    from warmstart.methods.advise import propose
    from warmstart.methods.advise_report import AdviceResult, write_config

    proposal = propose(settings_of(model, data, settings), goal, planned)
    if to is not None:
        write_config(proposal, to)
    return AdviceResult(proposal, to)
