"""What is asked of `explain`, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.analysis.explain import charts as make
from warmstart.analysis.explain.heat import GRAD_CAM, ROLLOUT, Look
from warmstart.analysis.explain.layers import Layer
from warmstart.analysis.explain.page import Chart
from warmstart.analysis.explain.projection import check_projections
from warmstart.console import table
from warmstart.errors import UserError, closest, listing
from warmstart.shown import Shown

METHODS = (GRAD_CAM, ROLLOUT, make.FILTERS, make.ACTIVATIONS, make.EMBEDDING, make.CKA)
PAGE, RECORD, MAPS = "explain.html", "explain.json", "maps.png"


@dataclass(frozen=True)
class Request:
    """What was asked for. Without `methods` all that apply; `images` instead of the data's; `only` names a class."""

    images: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    only: str | None = None
    layer: str | None = None
    num: int = 12
    limit: int = 1000
    start: str | None = None
    projections: tuple[str, ...] = ("pca", "tsne")
    output: str | None = None

    def check(self) -> None:
        """UserError for names that are not known, and for settings without effect."""
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"--method {name} is not known", listing(METHODS), closest(name, METHODS))
        check_projections(self.projections)
        wanted = set(self.methods or METHODS)
        dead = {
            "--layer": self.layer is not None and GRAD_CAM not in wanted,
            "--class-name": self.only is not None and GRAD_CAM not in wanted,
            "--start": self.start is not None and make.CKA not in wanted,
        }
        if problems := [
            UserError(f"{flag} has no effect with --method {','.join(self.methods)}")
            for flag, is_dead in dead.items()
            if is_dead
        ]:
            raise UserError.of_problems(problems, "the command line")


@dataclass(frozen=True)
class Explanation(Shown):
    """What was found; `left_out` says which methods do not apply, and why."""

    model: str
    what: str
    folder: str
    layer: Layer | None
    looks: tuple[Look, ...]
    charts: tuple[Chart, ...]
    left_out: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        of_layer = None if self.layer is None else {"path": self.layer.path, "places": str(self.layer.layout)}
        cases = [
            {
                **{"id": look.id, "group": look.case.group, "label": look.case.label or None},
                **{"answer": look.case.answer, "score": look.case.score},
                **{"score_of": look.case.scored, "measure": look.case.measure},
                "maps": [heat.to_json() for heat in look.heats],
            }
            for look in self.looks
        ]
        return {
            **{
                "model": self.model,
                "data": self.what,
                "folder": self.folder,
                "layer": of_layer,
                "images": cases,
            },
            "blocks": [row for chart in self.charts for row in chart.rows],
            "left_out": list(self.left_out),
            "unreadable": [{"id": name, "reason": reason} for name, reason in self.unreadable],
        }

    def text(self) -> str:
        lines = [f"{self.model} on {self.what}"]
        if self.layer is not None:
            rows = [
                (
                    look.id,
                    look.case.group,
                    look.case.label or "-",
                    look.case.answer,
                    look.case.score,
                    look.case.scored,
                    *_peaks(look),
                )
                for look in self.looks
            ]
            widest = max(map(len, rows))
            rows = [(*row, *("",) * (widest - len(row))) for row in rows]
            head = (
                "image",
                "group",
                "label",
                "answer",
                "score",
                "of",
                *("hottest place (x, y)",) * (widest - 6),
            )
            lines += [f"maps of {self.layer.words}", "", table("", head, rows, left=4)]
        for chart in self.charts:
            if chart.rows:
                body = [tuple(row.values()) for row in chart.rows]
                lines += ["", table(chart.title, tuple(chart.rows[0]), body)]
        lines += ["", *(f"left out: {reason}" for reason in self.left_out)]
        lines += [f"unreadable: {name}: {reason}" for name, reason in self.unreadable]
        return "\n".join([*lines, f"look: {Path(self.folder) / PAGE}"])

    @property
    def pictures(self) -> list[Path]:
        names = [*([MAPS] if self.looks else []), *(f"{chart.name}.png" for chart in self.charts)]
        return [Path(self.folder) / name for name in names]


def _peaks(look: Look) -> tuple[str, ...]:
    return tuple(
        f"{heat.words} at {heat.peak[0]:.2f}, {heat.peak[1]:.2f}" if heat.values.max() > 0 else heat.words
        for heat in look.heats
    )
