"""The verb that says what went wrong in a training, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.analysis.diagnose.findings import Diagnosis
    from warmstart.analysis.diagnose.overview import Overview


def diagnose(run: str, *, write: str | None = None, picture: str | None = None) -> Diagnosis | Overview:
    """What went wrong in a run (or in another program's history): findings with numbers, the likeliest cause first.

    `write` is a YAML file to write, with which `finetune` or `continue` runs the remedy; `picture` a PNG file. A folder
    of runs gives a line for each.

    Raises:
        UserError: neither a run nor a known history, without rows, a file that exists, nothing to write.
    """
    from warmstart.analysis.diagnose.overview import is_folder_of_runs, overview
    from warmstart.analysis.diagnose.rules import diagnose_history, open_history

    if write is not None:
        from warmstart.analysis.diagnose.next_config import write_next
        from warmstart.config.settings_file import check_new_file

        check_new_file("--write", write)
    if is_folder_of_runs(run):
        if write is not None or picture is not None:
            raise UserError(f"{run} is a folder of runs", "one run for --write and --picture")
        return overview(run)
    history = open_history(run)
    if write is not None and history.run is None:
        raise UserError(
            f"{run} is a history of {history.program}, whose settings nobody knows here",
            "a run of warmstart for --write",
            "without --write each finding names its remedy",
        )
    found = diagnose_history(history)
    if write is not None and history.run is not None:
        found = write_next(history.run, found, write)
    if picture is not None:
        from warmstart.analysis.diagnose.picture import plot_diagnosis

        plot_diagnosis(history, found, Path(picture))
        found = replace(found, picture=picture)
    return found
