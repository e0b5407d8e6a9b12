"""The verb that makes a model smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import keep_object
from warmstart.config import io as config_io
from warmstart.config.compress_section import CompressConfig, problems
from warmstart.errors import UserError, closest
from warmstart.run import layout

if TYPE_CHECKING:
    from torch import nn

    from warmstart.methods.compress.flow import Compressed, CompressionCost


def compress(
    model: str, *, dry_run: bool = False, module: nn.Module | None = None, **settings: Any
) -> Compressed | CompressionCost:
    """Make a run, RUN@step or file of weights smaller, recover what is lost, and measure both beside each other.

    `settings` are those of `warmstart compress` (`method="prune"`, `amount=.5`, `epochs=3`, `max_drop="1%"`). What
    comes out is a run like any other; called again with the same `output_dir`, what was interrupted goes on. `module`
    is an object like that of a run whose model was one.

    Raises:
        UserError: every problem of the settings at once; a model that is not compressed; an interruption.
    """
    console.setup()
    from warmstart.inference.device import resolve_device
    from warmstart.methods.compress.flow import compress as make_smaller

    if module is not None:
        keep_object(module, model, None)
    found = settings_of(settings)
    return make_smaller(model, found, resolve_device(found.device), dry_run)


def settings_of(settings: dict[str, Any]) -> CompressConfig:
    """UserError: every problem of them at once."""
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = [name for name in given if name not in CompressConfig.model_fields]
    if unknown:
        raise UserError(
            f"unknown setting {unknown[0]!r}",
            f"one of {', '.join(CompressConfig.model_fields)}",
            closest(unknown[0], CompressConfig.model_fields),
        )
    found = config_io.validate_section(CompressConfig, given)
    if told := problems(found):
        raise UserError.of_problems(told, "the settings")
    return found


def go_on(folder: str, execution: dict[str, Any]) -> Compressed | None:
    """Finish the compression that was interrupted in this folder; None: there is none.

    UserError: it is finished.
    """
    if not (Path(folder) / layout.COMPRESS).exists():
        return None
    from warmstart.inference.device import resolve_device
    from warmstart.methods.compress.beginning import unfinished
    from warmstart.methods.compress.flow import Compressed
    from warmstart.methods.compress.flow import compress as make_smaller

    left = unfinished(Path(folder))
    if left is None:
        raise UserError(
            f"{folder} is finished: nothing is left to resume",
            "a compression that was interrupted",
            f"look: warmstart show {folder}",
        )
    model, settings = left
    given = {name: value for name, value in execution.items() if value is not None}
    settings = settings.model_copy(update=given)
    made = make_smaller(model, settings, resolve_device(settings.device))
    assert isinstance(made, Compressed), "no dry run"
    return made
