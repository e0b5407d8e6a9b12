"""Phases: all of them are looked at before the first one begins, and each run records those that come after it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from warmstart.config import io
from warmstart.config.io import Layer
from warmstart.config.phases import Phase
from warmstart.console import log
from warmstart.engine.continuing.parent import ALL, KEEPS, WEIGHTS, Parent, by_path, contradictions, inherited
from warmstart.engine.outputs import run_folder
from warmstart.errors import UserError, closest, listing
from warmstart.models.zoo import split_name
from warmstart.run import layout
from warmstart.run.reader import Run


@dataclass(frozen=True)
class Planned:
    """A run to come: what it keeps of the one before, and its settings as YAML has them, by who gave them."""

    name: str
    keep: str
    folder: str
    layers: tuple[Layer, ...]

    def load(self, parent: Parent, above: tuple[Layer, ...] = ()) -> io.Loaded:
        return io.load({}, parent=parent.settings, above=(*self.layers, *above))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Planned:
        return cls(**{**values, "layers": tuple(Layer(**layer) for layer in values["layers"])})


def plan_phases(
    parent: Parent, phases: list[Phase], flags: dict[str, Any], config: str, preset: str | None
) -> list[Planned]:
    """Every phase with all its settings, and a folder that is known before it begins.

    Raises:
        UserError: of the first phase with settings that are wrong, or that contradict the phase before it.
    """
    planned: list[Planned] = []
    coming, before = parent, None
    for phase in phases:
        name = f"phase {phase.number} of {config}"
        try:
            if phase.keep not in KEEPS:
                raise UserError(
                    f"--keep {phase.keep}", f"one of {listing(KEEPS)}", closest(phase.keep, KEEPS)
                )
            loaded = io.load(phase.settings(flags), None, preset, coming.settings, phase.layers)
            if before is not None:
                _check_after(before, replace(coming, keep=phase.keep), loaded, planned[-1].name)
        except UserError as error:
            raise UserError(f"{name}: {error.happened}", error.expected, error.fix) from None
        planned.append(_planned(name, phase, loaded))
        for note in loaded.notes:
            log.info("alias: %s", note)
        before = loaded
        values = inherited(loaded.config) | {
            "model.name": loaded.config.model.name,
            "model.weights": parent.name,
        }
        coming = replace(parent, settings=Layer("parent", values), run=None, saved=None)
    folders = [one.folder for one in planned]
    if len(set(folders)) < len(folders):
        raise UserError(f"phases of {config} share a folder: {listing(folders)}", "a folder for each")
    return planned


def _check_after(before: io.Loaded, parent: Parent, loaded: io.Loaded, name: str) -> None:
    """What the phase before settles already; the rest is checked when it has run."""
    kept = None if parent.keep == WEIGHTS else before.config.optim.optimizer
    found = contradictions(
        parent, name, ":".join(split_name(before.config.model.name or "")), kept, loaded.config
    )
    was, now = before.config.train, loaded.config.train
    runs_to_its_end = was.patience is None and was.time_budget is None and was.max_steps is None
    if parent.keep == ALL and runs_to_its_end and now.epochs <= was.epochs:
        found.append(
            UserError(
                f"--keep all goes on counting, and --epochs {now.epochs} are not more than the {was.epochs} of {name}",
                f"--epochs above {was.epochs}, which is the new total",
                f"--epochs {was.epochs + now.epochs}, or keep: weights, which counts from 0",
            )
        )
    if found:
        raise UserError.of_problems(found, "the settings")


def _planned(name: str, phase: Phase, loaded: io.Loaded) -> Planned:
    """The settings that are not inherited, as they are written to YAML."""
    output = loaded.config.output
    folder = run_folder(loaded.config)
    # Phases may be planned within one tick of the clock.
    if output.output_dir is None and output.name is None:
        folder = folder.with_name(f"{folder.name}-phase{phase.number}")
    written = by_path(loaded.config) | {"output.output_dir": str(folder), "output.name": None}
    last = phase.layers[-1].origin
    origins = {path: origin for path, origin in loaded.origins.items() if origin != "parent"}
    origins |= dict.fromkeys(("output.output_dir", "output.name"), last)
    layers = tuple(
        Layer(origin, {path: written[path] for path in origins if origins[path] == origin})
        for origin in dict.fromkeys(origins.values())
    )
    return Planned(name, phase.keep, str(folder), layers)


def left_after(run: Run) -> list[Planned]:
    """The phases after a run, where none of them has begun."""
    later = run.resolved.get("continued", {}).get("later", [])
    found = [Planned.from_json(values) for values in later]
    return [] if found and layout.is_run(Path(found[0].folder)) else found
