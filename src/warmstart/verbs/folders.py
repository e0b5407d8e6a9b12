"""The verbs that read folders, of runs or of data, and use no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from warmstart import console
from warmstart.arguments import labelled_data
from warmstart.config import io as config_io
from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.analysis.summary import Description, RunList


def runs(folder: str = "runs") -> RunList:
    """One row per run directory below `folder`."""
    from warmstart.analysis.summary import list_runs

    return list_runs(folder)


def show(run: str) -> Description:
    """What a run directory says: state, start and best, plan, where things lie."""
    from warmstart.analysis.summary import describe_run

    return describe_run(run)


def init(
    data: str,
    weights: str | None = None,
    output: str = "warmstart.yaml",
    label_columns: str | None = None,
) -> str:
    """Write a commented YAML to start from, with what the data and the weights tell filled in."""
    console.setup()
    from warmstart.analysis.start import starting_settings
    from warmstart.run.writer import write_text

    target = Path(output)
    if target.exists():
        raise UserError(
            f"{target} exists already", "a new file", "choose another --output, or remove it first"
        )
    labelled = labelled_data(data, {"label_columns": label_columns})
    write_text(target, config_io.template(starting_settings(labelled, weights)))
    return str(target)
