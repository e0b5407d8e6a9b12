"""What was tried, for people and programs: the table, the best run, and what the comparison is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import table
from warmstart.methods.trials.trial import validations
from warmstart.methods.tryout.reached import best_of
from warmstart.methods.tryout.tryout import Outcomes, Tried
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.shown import Shown


@dataclass(frozen=True)
class TryoutResult(Shown):
    """`gains` are what the best run changed, in words, once it has come to its end."""

    found: Outcomes
    gains: tuple[str, ...] = ()

    @property
    def best(self) -> Tried | None:
        return None if self.found.best is None else self.found.tried[self.found.best]

    @property
    def pictures(self) -> list[Path]:
        return [] if self.best is None else [Path(self.best.run) / layout.CURVES]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self.found)
        found["tried"] = [{"rank": rank, **asdict(each)} for rank, each in enumerate(self.found.tried, 1)]
        return {
            **found,
            "best": None if self.best is None else self.best.name,
            "run": None if self.best is None else self.best.run,
            "config": None if self.best is None else str(Path(self.found.folder) / layout.BEST_CONFIG),
            "alike": self.alike(),
            "gains": list(self.gains),
        }

    def text(self) -> str:
        found = self.found
        rungs = [f"{100 * share:.3g} %" for share in found.shares]
        columns = ("", "strategy", "rate", *rungs, "step", "s", "")
        title = f"tried by successive halving: best val {found.metric} up to each share of the schedule"
        rows = [self._row(*pair) for pair in enumerate(found.tried)]
        lines = [title, table("", columns, rows, left=2), ""]
        lines += [f"{each.name} failed: {each.reason}" for each in found.tried if each.reason]
        if not found.is_over:
            lines.append(
                "the time budget was used up before the end: the same command with a longer --time-budget goes on"
            )
        if self.best is None:
            return "\n".join([*lines, "no strategy came as far as the first comparison: nothing can be said"])
        lines += [*self._verdict(self.best), *self.gains, ""]
        lines.append(f"run: {self.best.run}")
        lines.append(f"settings: {Path(found.folder) / layout.BEST_CONFIG}")
        if self.best.state != "finished":
            lines.append(f"finish it: warmstart resume {self.best.run}")
        return "\n".join([*lines, f"look: warmstart show {self.best.run}"])

    def _row(self, number: int, each: Tried) -> tuple[Any, ...]:
        values = (*each.values, *[None] * (len(self.found.shares) - len(each.values)))
        state = {"paused": "out" if self.found.is_over else "paused", "finished": "out, stopped early"}
        words = "best" if number == self.found.best else state.get(each.state, each.state)
        told = ("" if value is None else f"{value:.4f}" for value in values)
        return (
            number + 1,
            each.name,
            f"{each.lr:g}",
            *told,
            f"{each.step}/{each.total}",
            f"{each.seconds:.0f}",
            words,
        )

    def _verdict(self, best: Tried) -> list[str]:
        metric, num = self.found.metric, Run(Path(best.run)).resolved["data"]["sizes"]["val"]
        rows = validations(Path(best.run))
        value = best_of(rows, metric)
        assert value is not None, "the best one was measured"
        row = next(row for row in rows if row["step"] == value[1])
        low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        lines = [
            f"best: {best.name}: val {metric} {value[0]:.4f}{interval} at step {value[1]}, {num} val images"
        ]
        if value[1] == 0:
            lines.append("that is the start: nothing that was trained is better on val")
        compared = sum(bool(each.values) for each in self.found.tried)
        lines.append(
            f"it is the best of {compared} on the same val images, which is too kind; `warmstart compare` counts that"
        )
        if alike := self.alike():
            lines.append(
                f"with {num} images val cannot tell it from {', '.join(alike)}, as far as these were compared"
            )
        return lines

    def alike(self) -> list[str]:
        """Those whose value at the last rung that both reached lies within the interval of the best one's there."""
        if self.best is None:
            return []
        metric, found = self.found.metric, []
        rows = {row[metric]: row for row in validations(Path(self.best.run)) if row.get(metric) is not None}
        sign = SELECTION_METRICS[metric]
        for each in self.found.tried:
            shared = min(len(each.values), len(self.best.values))
            mine = None if shared == 0 else self.best.values[shared - 1]
            theirs = None if shared == 0 else each.values[shared - 1]
            if each is self.best or mine is None or theirs is None:
                continue
            bound = rows[mine].get(f"{metric}_low" if sign > 0 else f"{metric}_high")
            if bound is not None and sign * theirs >= sign * bound:
                found.append(each.name)
        return found
