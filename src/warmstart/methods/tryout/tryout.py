"""From advice to a finished run: candidates, rungs, the process of each, and who goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.config.io import load, to_yaml
from warmstart.config.places import check_on_disk, short_name
from warmstart.config.schema import SELECTION_METRICS, Config
from warmstart.console import log
from warmstart.errors import Interrupted, UserError
from warmstart.methods.advise import Proposal, Strategy, propose
from warmstart.methods.trials.looks import count_looks
from warmstart.methods.trials.owner import owned
from warmstart.methods.trials.process import Launch, launch_here
from warmstart.methods.trials.running import run_trials, slots_of
from warmstart.methods.trials.trial import Decision, Row, Trial, is_finished, metric_of, validations
from warmstart.methods.tryout.halving import Candidate, Rung, most_seconds, rungs, within_budget
from warmstart.methods.tryout.reached import has_reached, step_at, total, value_at
from warmstart.methods.tryout.record import Plan, known_plan, new_plan
from warmstart.run import layout, writer

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
        UserError: as `propose`; a folder of something else, or one in which another process works; a budget that is
            too short; all candidates failed.
        Interrupted: their states are saved.
    """
    begun = time.monotonic()
    flags = {name: value for name, value in given.items() if name != "output_dir"}
    config = load(dict(flags)).config
    check_on_disk(config, "every candidate trains in a process of its own")
    folder = Path(given.get("output_dir") or _folder(config))
    asked = {**flags, "goal": goal}  # with more time the same goes on
    with owned(folder):
        plan = known_plan(folder, asked)
        if plan is None:
            left = None if budget is None else budget - (time.monotonic() - begun)
            plan = new_plan(folder, asked, _short_list(flags, goal, left))
        else:
            log.info("going on with what was tried in %s", folder)
        clock = begun - plan.passed, budget
        return _Tryout(plan, flags, clock, launch or launch_here).run()


def _short_list(flags: Mapping[str, Any], goal: str, budget: float | None) -> Sequence[Candidate]:
    """What is advised, as much of it as fits into `budget` seconds, of which measuring takes its part."""
    begun = time.monotonic()
    proposal = propose(flags, goal)
    if proposal.facts.num_val == 0:
        raise UserError("there are no val images to compare strategies by", "a val split", "--val-ratio .1")
    left = None if budget is None else budget - (time.monotonic() - begun)
    return _fitted(_candidates(proposal), left, proposal.startup)


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
        self._values: list[dict[float, float | None]] = [{} for _ in numbers]  # by share
        self._states = ["waiting" for _ in numbers]
        self._reasons = ["" for _ in numbers]

    def run(self) -> Outcomes:
        numbers = list(range(len(self._trials)))
        steps = rungs(len(numbers))
        is_over = True
        try:
            for rung in steps:
                left = self._climb(numbers, rung)
                is_over = is_over and left is not None
                if left is None:
                    break
                numbers = left
                log.info("at %.3g %%: %s", 100 * rung.share, self._told(numbers, rung.share))
        except Interrupted as stopped:
            raise Interrupted(
                f"{stopped.happened.rstrip('.')}", fix=f"the same command goes on in {self._plan.folder}"
            ) from None
        finally:
            self._keep_time()
        return self._outcomes(tuple(rung.share for rung in steps), is_over)

    def _climb(self, numbers: list[int], rung: Rung) -> list[int] | None:
        """Train the first of these up to a rung; whoever fails makes room for the next. All again, by what they have
        reached, the best first; None: there was no time.

        UserError: all of them failed.
        """
        while True:
            alive = [n for n in numbers if self._states[n] != "failed"][: rung.num]
            if not alive:
                reason = self._reasons[numbers[0]]
                raise UserError(f"all strategies failed; the first: {reason}", "settings that train")
            self._train([self._trials[n] for n in alive], rung.share)
            if all(self._states[n] != "failed" for n in alive):
                break
        reached = [n for n in alive if has_reached(self._trials[n].run, rung.share)]
        for n in reached:
            self._values[n][rung.share] = value_at(self._trials[n].run, rung.share)
        if reached != alive:
            return None
        sign = SELECTION_METRICS[str(self._metric)]
        best = sorted(alive, key=lambda n: -sign * _worth(self._values[n][rung.share], sign))
        return best + [n for n in numbers if n not in alive]

    def _train(self, trials: list[Trial], share: float) -> None:
        """Up to this share of their schedules; those that are there already start no process."""
        below = [trial for trial in trials if not has_reached(trial.run, share)]
        for trial in trials:
            if trial not in below:
                self._states[trial.number] = "finished" if is_finished(trial.run) else "paused"
        one = slots_of([], None)

        def judge(trial: Trial, rows: list[Row]) -> Decision:
            """Whoever has come to a rung waits there for the others."""
            self._keep_time()
            return "pause" if share < 1 and rows[-1]["step"] >= step_at(trial.run, share) else "go on"

        outcomes = run_trials(below, one, judge, until=self._until, launch=self._launch, total=len(below))
        for outcome in outcomes:
            n = outcome.trial.number
            self._spent[n] += outcome.seconds
            self._states[n], self._reasons[n] = outcome.state, outcome.reason
            self._keep_time()

    def _keep_time(self) -> None:
        """After every validation, so that a crash does not give the budget back."""
        self._plan.with_time(self._spent, time.monotonic() - self._begun)

    @property
    def _metric(self) -> str | None:
        """None before any of them has begun."""
        return next((metric_of(trial.run) for trial in self._trials if layout.is_run(trial.run)), None)

    def _reached(self, number: int) -> float:
        return max(self._values[number], default=0.0)

    def _told(self, numbers: list[int], share: float) -> str:
        """Those that were measured there: one that failed was not."""
        own = [(n, self._values[n][share]) for n in numbers if share in self._values[n]]
        return ", ".join(f"{self._plan.candidates[n].name} {_short(value)}" for n, value in own)

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
                    values=tuple(value_at(run, share) for share in shares if share <= self._reached(number)),
                    step=max((row["step"] for row in rows), default=0),
                    total=total(run) if layout.is_run(run) else 0,
                    seconds=self._spent[number],
                    state=self._states[number],
                    reason=self._reasons[number],
                )
            )
        metric = self._metric
        best = None if metric is None else _best(tried, SELECTION_METRICS[metric])
        if best is not None:
            self._write_best(best)
        return Outcomes(str(self._plan.folder), metric or "value", shares, tuple(tried), best, is_over)

    def _write_best(self, number: int) -> None:
        """The settings of the best one, and beside the runs how many were seen side by side on val."""
        trial = self._trials[number]
        text = to_yaml(trial.config, trial.loaded.origins)
        writer.write_text(self._plan.folder / layout.BEST_CONFIG, text)
        count_looks([each.run for each in self._trials])


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
