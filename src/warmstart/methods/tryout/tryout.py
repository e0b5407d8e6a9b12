"""From advice to a finished run: candidates, rungs, the process of each, and who goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from warmstart.analysis.compare.looks import count_table
from warmstart.analysis.compare.sides import open_side
from warmstart.config.io import load, to_yaml
from warmstart.config.places import check_on_disk, short_name
from warmstart.config.schema import SELECTION_METRICS, Config
from warmstart.console import log
from warmstart.errors import Interrupted, UserError
from warmstart.methods.advise import Proposal, Strategy, propose
from warmstart.methods.trials.process import Launch, launch_here
from warmstart.methods.trials.running import run_trials, slots_of
from warmstart.methods.trials.trial import Decision, Outcome, Row, Trial, metric_of, validations
from warmstart.methods.tryout.halving import Candidate, Rung, most_seconds, rungs, within_budget
from warmstart.methods.tryout.record import Plan, known_plan, new_plan
from warmstart.run import layout, writer
from warmstart.run.reader import Run

_MOST = 6  # candidates
_IMPORTS = 5.0  # seconds until a process has imported what it needs


@dataclass(frozen=True)
class Tried:
    """What came of a candidate: its best val value up to each rung that it reached, and where it stands."""

    name: str
    rule: str
    lr: float
    run: str
    values: tuple[float | None, ...]
    step: int
    total: int
    seconds: float
    state: str  # finished, paused, failed, or waiting
    reason: str = ""

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


@dataclass(frozen=True)
class Outcomes:
    """All that was tried, in the order of the ranking; `best` is the number of the best, None where none came far."""

    folder: str
    metric: str
    shares: tuple[float, ...]
    tried: tuple[Tried, ...]
    best: int | None
    is_over: bool  # not stopped by the budget


def try_out(
    given: Mapping[str, Any], goal: str, budget: float | None, launch: Launch | None = None
) -> Outcomes:
    """Try the short list for the data and the model that the flags `given` name, within `budget` seconds.

    What was interrupted in the same folder by the same words goes on.

    Raises:
        UserError: as `propose`; a folder of something else; a budget that is too short; all candidates failed.
        Interrupted: their states are saved.
    """
    begun = time.monotonic()
    flags = {name: value for name, value in given.items() if name not in ("output_dir", "name", "save_as")}
    config = load(dict(flags)).config
    check_on_disk(config, "every candidate trains in a process of its own")
    folder = Path(given.get("output_dir") or _folder(config))
    asked = {**flags, "goal": goal, "time budget": budget}
    plan = known_plan(folder, asked)
    if plan is None:
        proposal = propose(flags, goal)
        if proposal.facts.num_val == 0:
            raise UserError(
                "there are no val images to compare strategies by", "a val split", "--val-ratio .1"
            )
        left = None if budget is None else budget - (time.monotonic() - begun)
        candidates = _fitted(_candidates(proposal), left, proposal.startup)
        plan = new_plan(folder, asked, candidates)
    else:
        log.info("going on with what was tried in %s", folder)
    clock = begun - plan.passed, budget
    return _Tryout(plan, flags, clock, launch or launch_here).run()


def _folder(config: Config) -> Path:
    """Without a time in its name: the same command must find it."""
    model = (
        Path(config.model.name or config.model.weights or "model").name.partition("@")[0].replace(":", "-")
    )
    return Path(config.output.runs_dir) / f"{short_name(config.data.path or 'data')}-{model}-tried"


def _candidates(proposal: Proposal) -> list[Candidate]:
    """Those strategies that can run here, by rank."""
    config = proposal.loaded.config

    def candidate(each: Strategy) -> Candidate:
        assert each.trial.seconds is not None, "it was measured"
        values = each.advice.values
        lr, epochs = values.get("optim.lr", config.optim.lr), values.get("train.epochs", config.train.epochs)
        rule = "advised" if each.rule is None else each.rule.id
        return Candidate(each.name, rule, lr, epochs, each.trial.seconds, values)

    found = [candidate(each) for each in proposal.strategies if each.can_run]
    if not found:
        raise UserError("no strategy fits here", "one that fits", "a smaller --model or --image-size")
    return found[:_MOST]


def _fitted(candidates: Sequence[Candidate], budget: float | None, startup: float) -> Sequence[Candidate]:
    """With the epochs that the budget allows; says what all will take."""
    startup += _IMPORTS
    if budget is not None:
        candidates = within_budget(candidates, budget, startup)
    expected = most_seconds([each.share * each.seconds for each in candidates], startup)
    names = ", ".join(each.name for each in candidates)
    log.info("%d strategies by successive halving, at most %.0f s: %s", len(candidates), expected, names)
    return candidates


class _Tryout:
    """The candidates of one folder, trained rung by rung; `clock` is when it began, and the budget."""

    def __init__(
        self, plan: Plan, flags: Mapping[str, Any], clock: tuple[float, float | None], launch: Launch
    ) -> None:
        self._plan, self._launch = plan, launch
        self._begun, budget = clock
        self._until = None if budget is None else self._begun + budget
        self._spent = list(plan.spent)
        numbers = range(len(plan.candidates))
        self._trials = [Trial(number, plan.run(number), plan.loaded(number, flags)) for number in numbers]
        self._values: list[list[float | None]] = [[] for _ in numbers]
        self._states = ["waiting" for _ in numbers]
        self._reasons = ["" for _ in numbers]

    def run(self) -> Outcomes:
        numbers = list(range(len(self._trials)))
        steps = rungs(len(numbers))
        is_over = True
        try:
            for number, rung in enumerate(steps):
                left = self._climb(numbers[: rung.num], rung)
                is_over = is_over and left is not None
                if left is None:
                    break
                numbers = left
                if number + 1 < len(steps):
                    log.info("at %.3g %%: %s", 100 * rung.share, self._told(numbers))
        except Interrupted as stopped:
            raise Interrupted(
                f"{stopped.happened.rstrip('.')}", fix=f"the same command goes on in {self._plan.folder}"
            ) from None
        finally:
            self._plan.with_time(self._spent, time.monotonic() - self._begun)
        return self._outcomes(tuple(rung.share for rung in steps), is_over)

    def _climb(self, numbers: list[int], rung: Rung) -> list[int] | None:
        """Train these up to a rung; they by what they have reached, the best first. None: there was no time for all.

        UserError: all of them failed.
        """
        trials = [self._trials[number] for number in numbers]
        judge = partial(_judge, rung.share)
        each = run_trials(
            trials, slots_of([], None), judge, until=self._until, launch=self._launch, total=len(trials)
        )
        for outcome in each:
            self._note(outcome, rung.share)
        left = [number for number in numbers if self._states[number] != "failed"]
        if not left:
            raise UserError(
                f"all strategies failed; the first: {self._reasons[numbers[0]]}", "settings that train"
            )
        if any(not _has_reached(self._trials[number].run, rung.share) for number in left):
            return None
        sign = SELECTION_METRICS[self._metric]
        return sorted(left, key=lambda number: -sign * _worth(self._values[number][-1], sign))

    def _note(self, outcome: Outcome, share: float) -> None:
        number = outcome.trial.number
        self._spent[number] += outcome.seconds
        self._states[number], self._reasons[number] = outcome.state, outcome.reason
        if _has_reached(outcome.trial.run, share):
            rows = _up_to(outcome.trial.run, outcome.rows, share)
            best = best_of(rows, metric_of(outcome.trial.run))
            self._values[number].append(None if best is None else best[0])

    @property
    def _metric(self) -> str:
        return next(metric_of(trial.run) for trial in self._trials if layout.is_run(trial.run))

    def _told(self, numbers: list[int]) -> str:
        return ", ".join(f"{self._plan.candidates[n].name} {_short(self._values[n][-1])}" for n in numbers)

    def _outcomes(self, shares: tuple[float, ...], is_over: bool) -> Outcomes:
        tried = []
        for number, each in enumerate(self._plan.candidates):
            run = self._trials[number].run
            rows = validations(run) if layout.is_run(run) else []
            tried.append(
                Tried(
                    name=each.name,
                    rule=each.rule,
                    lr=each.lr,
                    run=str(run),
                    values=tuple(self._values[number]),
                    step=max((row["step"] for row in rows), default=0),
                    total=_total(run) if layout.is_run(run) else 0,
                    seconds=self._spent[number],
                    state=self._states[number],
                    reason=self._reasons[number],
                )
            )
        best = _best(tried, SELECTION_METRICS[self._metric])
        if best is not None:
            self._write_best(best)
        return Outcomes(str(self._plan.folder), self._metric, shares, tuple(tried), best, is_over)

    def _write_best(self, number: int) -> None:
        """The settings of the best one, and beside the runs how many were seen side by side on val."""
        trial = self._trials[number]
        text = to_yaml(trial.config, trial.loaded.origins)
        writer.write_text(self._plan.folder / layout.BEST_CONFIG, text)
        runs = [
            each.run for each in self._trials if layout.is_run(each.run) and Run(each.run).checkpoint_steps()
        ]
        sides = [open_side(str(run)) for run in runs]
        count_table(sides, "val", str(sides[-1].data["fingerprint"]))


def best_of(rows: Sequence[Row], metric: str) -> tuple[float, int] | None:
    """The best finite value of a metric and the first step that had it; None where no row has one."""
    sign = SELECTION_METRICS[metric]
    found = [(row[metric], row["step"]) for row in rows if row.get(metric) is not None]
    return max(found, key=lambda pair: (sign * pair[0], -pair[1]), default=None)


def _judge(share: float, trial: Trial, rows: list[Row]) -> Decision:
    """Whoever has come to a rung waits there for the others."""
    return "pause" if share < 1 and rows[-1]["step"] >= _step_at(trial.run, share) else "go on"


def _total(run: Path) -> int:
    return int(Run(run).resolved["pace"]["total_steps"])


def _step_at(run: Path, share: float) -> int:
    return math.ceil(share * _total(run))


def _has_reached(run: Path, share: float) -> bool:
    """Also a run that stopped early: it has come as far as it wants."""
    if not layout.is_run(run):
        return False
    if Run(run).status.get("state") == "finished":
        return True
    return share < 1 and any(row["step"] >= _step_at(run, share) for row in validations(run))


def _up_to(run: Path, rows: list[Row], share: float) -> list[Row]:
    """The validations of what was trained, up to the one that counts for a rung: the first behind it."""
    wanted = _step_at(run, share)
    end = next((row["step"] for row in rows if row["step"] >= wanted), None)
    return [row for row in rows if row["step"] > 0 and (end is None or row["step"] <= end)]


def _worth(value: float | None, sign: int) -> float:
    return -sign * math.inf if value is None else value


def _best(tried: Sequence[Tried], sign: int) -> int | None:
    """Of those that came furthest the best; the earlier in the ranking among equals."""
    found = [number for number, each in enumerate(tried) if each.state != "failed" and each.last is not None]
    return max(
        found,
        key=lambda n: (len(tried[n].values), sign * _worth(tried[n].last, sign), -n),
        default=None,
    )


def _short(value: float | None) -> str:
    return "no value" if value is None else f"{value:.4g}"
