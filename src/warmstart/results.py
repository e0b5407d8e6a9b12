"""What `finetune` and `resume` give back: records with `to_json()` (what `--json` prints) and `text()`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.run import layout
from warmstart.run.lineage import verdict
from warmstart.shown import METRICS, Shown

if TYPE_CHECKING:
    from warmstart.analysis.gain import Gain
    from warmstart.run.lineage import Comparison


@dataclass(frozen=True)
class FinetuneResult(Shown):
    """A finished run: `metrics` are of its best checkpoint on test (else val)."""

    run: str
    metrics: dict[str, float]
    num_samples: int
    split: str
    gains: list[Gain]
    compared: Comparison | None = None  # with the parent that it continues

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "metrics": self.metrics,
            "num_samples": self.num_samples,
            "split": self.split,
            "gains": [gain.to_json() for gain in self.gains],
            "parent": None if self.compared is None else self.compared.to_json(),
        }

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.run) / layout.CURVES]

    def text(self) -> str:
        rows = [
            (gain.where, name, gain.start.get(name), gain.best.get(name))
            for gain in self.gains
            for name in METRICS
            if name in gain.best
        ]
        lines = [console.table("", ("split", "metric", "start", "best"), rows, left=2), ""]
        lines += [gain.text() for gain in self.gains]
        lines += [] if self.compared is None else [self.compared.text()]
        lines += ["", f"run: {self.run}", f"look: warmstart show {self.run}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class PhasesResult(Shown):
    """Runs one after the other, each a child of the one before it; `keeps` is what each kept of its parent."""

    runs: list[FinetuneResult]
    keeps: list[str]

    def to_json(self) -> dict[str, Any]:
        phases = zip(self.runs, self.keeps, strict=True)
        return {"phases": [{"keep": keep, **run.to_json()} for run, keep in phases]}

    @property
    def pictures(self) -> list[Path]:
        return [picture for run in self.runs for picture in run.pictures]

    def text(self) -> str:
        rows = []
        for number, (run, keep) in enumerate(zip(self.runs, self.keeps, strict=True), 1):
            found = run.compared
            cells = (None,) * 3 if found is None else (found.metric, found.bar, found.value)
            words = "-" if found is None else verdict(found.gain) if found.improved else "NOT better"
            rows.append((str(number), run.run, keep, words, *cells))
        head = ("phase", "run", "keeps", "against the phase before", "metric", "to beat", "best")
        return "\n".join([console.table("phases", head, rows, left=5), "", self.runs[-1].text()])


@dataclass(frozen=True)
class DryRunResult(Shown):
    """What a run would do and cost; nothing was written."""

    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.record

    def text(self) -> str:
        return "dry run: nothing was written"
