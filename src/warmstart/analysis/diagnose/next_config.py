"""From findings to settings that run as they are: YAML for `finetune`, or for `continue` of the run itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from warmstart.analysis.diagnose.evidence import divided_source
from warmstart.analysis.diagnose.findings import Diagnosis, Finding
from warmstart.analysis.diagnose.next_data import write_table
from warmstart.config.io import from_dict, load
from warmstart.config.schema import Config, leaves
from warmstart.config.settings_file import comment, settings_lines
from warmstart.errors import UserError
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run
from warmstart.run.writer import write_text

_OWN_PLACES = ("output.output_dir", "output.name", "output.save_as")


def write_next(run: Run, diagnosis: Diagnosis, target: str) -> Diagnosis:
    """Write the settings that the findings ask for, and where data must change a table beside them.

    Of the first finding all changes are taken, and of the others that are causes what does not contradict. The run goes
    on where every change allows that; else it starts again from what it started from.

    Raises:
        UserError: nothing was found or can be changed by settings, or the file exists.
    """
    chosen = [f for n, f in enumerate(diagnosis.findings) if n == 0 or f.is_certain]
    changes: dict[str, Any] = {}
    for finding in chosen:
        for path, value in finding.changes.items():
            changes.setdefault(path, value)
    table = _table(run, chosen, target)
    if not changes and table is None:
        raise UserError(
            "there is nothing to write: "
            + ("no finding" if not chosen else "no setting mends what was found"),
            "a finding that settings or a new division mend",
            chosen[0].remedy if chosen else "the run as it is",
        )
    goes_on = table is None and all(finding.on for finding in chosen if finding.changes)
    command: tuple[str, ...]
    if goes_on:
        command = ("warmstart", "continue", str(run.path), "--config", target)
        values = changes
    else:
        command = ("warmstart", "finetune", "--config", target)
        values = _settings(run) | changes | ({} if table is None else {"data.path": str(table.absolute())})
    write_text(Path(target), _yaml(values, changes, chosen, command))
    if not goes_on:
        load({}, target)  # what was written is what finetune takes
    written = (target,) if table is None else (target, str(table))
    return replace(diagnosis, written=written, command=command)


def _table(run: Run, findings: list[Finding], target: str) -> Path | None:
    """The data anew, beside the settings; None where no finding asks for it or the images are in no files."""
    wanted = {finding.data for finding in findings} - {None}
    source = divided_source(run) if wanted else None
    if source is None:
        return None
    return write_table(source, wanted, Path(target).with_suffix(".csv"), run.resolved["seed"])


def _settings(run: Run) -> dict[str, Any]:
    """The run's own that are no defaults, with the places as they are now, and the weights it began with."""
    dumped, own = Config().model_dump(mode="json"), from_dict(run.config).model_dump(mode="json")
    values = {
        leaf.path: own[leaf.section][leaf.name]
        for leaf in leaves()
        if own[leaf.section][leaf.name] != dumped[leaf.section][leaf.name] and leaf.path not in _OWN_PLACES
    }
    resolved = run.resolved
    values |= {"data.path": resolved["data"]["path"], "model.name": resolved["model"]["name"]}
    source, parent = resolved["model"]["source"], resolved["parent"]
    if parent is not None:
        values["model.weights"] = reference_of(parent)
    elif source["kind"] == "file":
        values["model.weights"] = source["path"]
    elif source["kind"] == "random":
        values["model.weights"] = "none"
    return values


def _yaml(
    values: dict[str, Any], changes: dict[str, Any], findings: list[Finding], command: tuple[str, ...]
) -> str:
    """The settings by section; what was changed has its reason above it."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".", 1)
        nested.setdefault(section, {})[name] = value
    found = {path: f"{f.id}: {f.title}" for f in reversed(findings) for path in f.changes}
    reasons = {path: found[path] if path in changes else "" for path in values}
    lines = comment(f"By `warmstart diagnose`; run: {' '.join(command)}")
    return "\n".join([*lines, *settings_lines(Config.model_validate(nested), reasons)]) + "\n"
