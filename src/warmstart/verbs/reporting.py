"""The verbs that tell others of a run: a page, or a tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmstart import console

if TYPE_CHECKING:
    from warmstart.analysis.report.report import Report
    from warmstart.methods.track import Sent


def report(target: str, *, lang: str = "en", images: bool = True, output: str | None = None) -> Report:
    """Write one self-contained HTML page about a run, or a comparison or a sweep (its folder or JSON file).

    `lang` is en or zh; without `images` no picture of the data is in it; `output` is the file (default: report.html in
    the folder of what it is about). The page asks nothing of the network.

    Raises:
        UserError: nothing of this kind, or damaged; a file that is no page of ours and would be lost.
    """
    console.setup()
    from warmstart.analysis.report.report import write_report

    return write_report(target, lang, images, output)


def track(run: str, *, to: str, project: str | None = None, images: bool = True, again: bool = False) -> Sent:
    """Send a run that is over to a tracker: its rows by step, settings, tags, and (with `images`) its pictures.

    `to` is mlflow (where MLFLOW_TRACKING_URI says) or wandb (by its login; WANDB_MODE=offline keeps it here). `project`
    is the experiment's or project's name. A run that was sent before is sent once more only with `again`.

    Raises:
        UserError: the tracker is not installed, or refuses it; the run is in progress, or was sent already.
    """
    console.setup()
    from warmstart.methods.track import PROJECT, track_run

    return track_run(run, to, project or PROJECT, images, again)
