"""Between the study and the trials: which trial is next, what is said of its validations, how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.config.schema import SELECTION_METRICS
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.methods.sweep.halving import Entry, is_at_rung, next_to_go_on, rungs_of
from warmstart.methods.sweep.request import Request
from warmstart.methods.sweep.study import Study
from warmstart.methods.trials.trial import Decision, Outcome, Row, Trial, metric_of
from warmstart.run.reader import Run

_WHOLE = 1000  # places in a run are thousandths of its steps


class Search:
    """The trials of one process: a source and a judge for `run_trials`, told of every outcome."""

    def __init__(self, request: Request, study: Study) -> None:
        self._request, self._study = request, study
        self._running: set[int] = set()
        self._paused: dict[int, dict[str, str]] = {}  # by halving: number -> values
        self._num_passed: dict[int, int] = {}  # rungs, by trial
        self._reported: dict[int, set[int]] = {}
        self._known_rungs: tuple[int, ...] = ()
        self._again: list[tuple[int, dict[str, str]]] = []  # whose process was killed
        self._known_facts: dict[Path, dict[str, Any]] = {}
        self._is_exhausted = False
        self._is_told = False

    # ---- What is next

    def trials(self) -> Iterator[Trial | None]:
        """Those that were taken before and not ended, then the queue; between them those that halving lets go on."""
        for known, values in self._study.mine():
            self._reported[known.number] = set(known.scores)
            self._num_passed[known.number] = known.notes.get("num_passed", 0)
            if known.notes.get("is_paused"):
                self._paused[known.number] = values
            else:
                yield from self._begun(known.number, values)
        while True:
            if self._again:
                yield from self._begun(*self._again.pop())
            elif (number := self._promoted(is_last=False)) is not None:
                yield from self._begun(number, self._paused.pop(number))
            elif (taken := self._study.take()) is not None:
                yield from self._begun(*taken)
            elif self._running:
                yield None
            elif (number := self._promoted(is_last=True)) is not None:
                yield from self._begun(number, self._paused.pop(number))
            else:
                self._is_exhausted = True
                return

    def _begun(self, number: int, values: dict[str, str]) -> list[Trial]:
        """The trial; none where its values contradict each other, which the study was told."""
        told = " ".join(f"{name}={value}" for name, value in values.items())
        try:
            trial = self._request.trial(number, values)
        except UserError as error:
            self._fail(number, str(error))
            return []
        self._running.add(number)
        log.info("trial %d: %s", number, told)
        return [trial]

    def _promoted(self, is_last: bool) -> int | None:
        """The paused trial that goes on now; it is let past its rung."""
        if not self._paused:
            return None
        entries = [
            Entry(
                known.number,
                known.scores,
                self._num_passed.get(known.number, known.notes.get("num_passed", 0)),
                known.number in self._paused,
            )
            for known in self._study.known()
        ]
        number = next_to_go_on(entries, self._rungs(), is_last)
        if number is not None:
            self._num_passed[number] = self._num_passed.get(number, 0) + 1
            self._study.note(number, num_passed=self._num_passed[number], is_paused=False)
        return number

    def _rungs(self, num_validations: int | None = None) -> tuple[int, ...]:
        """Of all trials, by the number of validations of the first one that had any."""
        if not self._known_rungs:
            own = None if num_validations is None else rungs_of(num_validations)
            self._known_rungs = tuple(self._study.agreed("rungs", own) or ())
            if own == () and not self._known_rungs and not self._is_told:
                self._is_told = True
                log.warning(
                    "--prune halving has no effect: a run has %d validations, and a third of them is none;"
                    " --eval-every makes more",
                    num_validations,
                )
        return self._known_rungs

    # ---- What is said of a validation

    def judge(self, trial: Trial, rows: list[Row]) -> Decision:
        row, number = rows[-1], trial.number
        if row["step"] == 0:
            return "go on"
        facts = self._facts(trial.run)
        place, score = self._place(row, facts), self._score(row, facts["metric"])
        if score is None:
            return "go on"
        seen = self._reported.setdefault(number, set())
        if place not in seen:
            seen.add(place)
            self._study.report(number, place, score)
        if place >= _WHOLE:
            return "go on"
        if self._request.settings.prune == "median":
            return "stop" if self._study.is_below_median(number) else "go on"
        if self._request.settings.prune == "halving":
            rungs = self._rungs(facts["num_validations"])
            return "pause" if is_at_rung(place, self._num_passed.get(number, 0), rungs) else "go on"
        return "go on"

    @staticmethod
    def _place(row: Row, facts: dict[str, Any]) -> int:
        return min(_WHOLE, _WHOLE * row["step"] // facts["total_steps"])

    @staticmethod
    def _score(row: Row, metric: str) -> float | None:
        """More is better."""
        value = row.get(metric)
        return None if value is None else SELECTION_METRICS[metric] * float(value)

    # ---- How it ended

    def ended(self, outcome: Outcome) -> None:
        number, run = outcome.trial.number, outcome.trial.run
        self._running.discard(number)
        if outcome.state == "failed":
            self._failed(outcome)
            return
        if not outcome.rows and outcome.state == "finished":
            raise UserError("there are no val images to compare trials by", "a val split", "--val-ratio .1")
        if not outcome.rows:  # it was paused before it had begun
            return
        facts = self._facts(run)
        best = outcome.best(facts["metric"])
        notes = self._notes(outcome, facts, best)
        told = "no value" if best is None else f"{facts['metric']} {best[0]:.4f} at step {best[1]}"
        log.info(
            "trial %d %s at step %d of %d: %s",
            number,
            outcome.state,
            outcome.step,
            facts["total_steps"],
            told,
        )
        if outcome.state == "finished" and best is None:
            self._fail(number, f"no validation had a finite {facts['metric']}", outcome.seconds)
        elif outcome.state == "finished":
            assert best is not None
            score = SELECTION_METRICS[facts["metric"]] * best[0]
            self._study.end(number, "finished", score, **notes)
        elif outcome.state == "stopped":
            self._study.end(number, "stopped", **notes)
        elif self._is_held(outcome, facts):
            self._study.note(number, **notes, is_paused=True)
            self._paused[number] = self._study.of(number).values
        else:
            self._study.note(number, **notes)

    def _failed(self, outcome: Outcome) -> None:
        """What was killed from outside (by a machine short of memory, say) goes on once from its last checkpoint."""
        number = outcome.trial.number
        known = self._study.of(number)
        if outcome.was_killed and not known.notes.get("was_killed"):
            log.warning("trial %d goes on from its last checkpoint: %s", number, outcome.reason)
            self._study.note(number, was_killed=True)
            self._again.append((number, known.values))
        else:
            self._fail(number, outcome.reason, outcome.seconds)

    def close(self) -> None:
        """Nothing is left to try: the trials that halving has paused are the ones that it gave up.

        Where the time was over first, they wait.
        """
        if self._is_exhausted and self._study.num_waiting() == 0:
            for number in self._paused:
                self._study.end(number, "stopped")
            self._paused.clear()

    def _is_held(self, outcome: Outcome, facts: dict[str, Any]) -> bool:
        """Whether a paused trial waits at a rung, and was not just out of time."""
        if self._request.settings.prune != "halving":
            return False
        place = self._place(outcome.rows[-1], facts)
        return is_at_rung(place, self._num_passed.get(outcome.trial.number, 0), self._rungs())

    def _fail(self, number: int, reason: str, seconds: float = 0.0) -> None:
        log.warning("trial %d failed: %s", number, reason)
        self._study.end(number, "failed", reason=reason, seconds=round(seconds, 1))

    def _notes(
        self, outcome: Outcome, facts: dict[str, Any], best: tuple[float, int] | None
    ) -> dict[str, Any]:
        row = next((row for row in outcome.rows if best is not None and row["step"] == best[1]), {})
        return {
            "low": row.get(f"{facts['metric']}_low"),
            "high": row.get(f"{facts['metric']}_high"),
            "run": str(outcome.trial.run),
            "metric": facts["metric"],
            "value": None if best is None else best[0],
            "best_step": None if best is None else best[1],
            "step": outcome.step,
            "total_steps": facts["total_steps"],
            "seconds": round(sum((Run(outcome.trial.run).status.get("time") or {}).values()), 1),
        }

    def _facts(self, run: Path) -> dict[str, Any]:
        """What a run decided before its first step."""
        if run not in self._known_facts:
            pace = Run(run).resolved["pace"]
            self._known_facts[run] = {
                "metric": metric_of(run),
                "total_steps": pace["total_steps"],
                "num_validations": max(1, pace["total_steps"] // pace["eval_every"]),
            }
        return self._known_facts[run]
