"""Propose settings for data and a model: rules over facts, then a few measured steps of what they say.

Nothing is trained, and only memory and time are measured: the rules are the founding documents', starts and no results.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from warmstart.config.io import Layer, Loaded, load
from warmstart.config.schema import Config, leaves
from warmstart.config.tasks_rules import is_multitask
from warmstart.console import log
from warmstart.engine.opening.open_inputs import Inputs, build_model, open_inputs
from warmstart.engine.outputs import run_folder
from warmstart.engine.pace import expected_seconds
from warmstart.engine.prepare import Prepared, prepare
from warmstart.engine.probe import probe
from warmstart.errors import UserError
from warmstart.inference.memory_watch import watch_memory
from warmstart.inference.reference import WeightsReference
from warmstart.methods.advise_decide import Advice, forms, options, others
from warmstart.methods.advise_facts import Facts
from warmstart.methods.advise_look import gather
from warmstart.methods.advise_rules import Rule

_SHARE = 0.9  # of the memory: what is left is for the driver, and for pieces that do not fit into each other
_ADVICE = "advice"  # the origin of a value


@dataclass(frozen=True)
class Trial:
    """A few steps of some advice: bytes beyond what is there before, and seconds; None where nothing was measured.

    `refused` is why it cannot run at all, `fits` None where memory cannot be measured.
    """

    method: str
    batch_size: int
    accumulate: int
    checkpointing: bool
    memory: int | None = None
    seconds_per_epoch: float | None = None
    seconds: float | None = None  # of the whole run
    fits: bool | None = False
    refused: str | None = None


@dataclass(frozen=True)
class Strategy:
    """Some advice, and what it costs here; `rule` is why it is worth a try, None for what is advised."""

    name: str
    rule: Rule | None
    advice: Advice
    trial: Trial

    @property
    def can_run(self) -> bool:
        return self.trial.refused is None and self.trial.fits is not False


@dataclass(frozen=True)
class Proposal:
    """Facts, what the rules say of them, and what was measured; `trials` in their order, the last is of the advice.

    `strategies` are ranked: what is advised, then what else is worth a try; last what cannot run here.
    """

    facts: Facts
    advice: Advice
    loaded: Loaded
    trials: tuple[Trial, ...]
    strategies: tuple[Strategy, ...]
    startup: float  # seconds until data and model are open

    @property
    def fits(self) -> bool | None:
        return self.trials[-1].fits


def propose(flags: Mapping[str, Any], goal: str, device_memory: int | None = None) -> Proposal:
    """Advice for the data and the model that `flags` name; what else they set stays. `device_memory` in bytes.

    Raises:
        UserError: data or a model that cannot be read or do not fit each other, or settings that contradict.
    """
    bench = _Bench(dict(flags))
    begun = time.perf_counter()
    base = bench.prepare({"data.workers": 0, "data.feature_cache": "off"})
    startup = time.perf_counter() - begun
    facts = gather(base, goal, device_memory)
    del base
    limit = None if facts.device_memory is None else int(_SHARE * facts.device_memory)
    advice, trials = _search(facts, bench, limit)
    strategies = _strategies(facts, bench, limit, Strategy(advice.method, None, advice, trials[-1]))
    return Proposal(facts, advice, bench.load(advice.values), tuple(trials), tuple(strategies), startup)


class _Bench:
    """Tries settings on data that are opened once; the model is built anew each time."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self._flags = flags
        loaded = self.load({})
        if is_multitask(loaded.config):
            raise UserError(
                "advise is about one task, and --tasks names several",
                "the data of one task",
                "ask about each, and give `warmstart multitask` what they agree on",
            )
        self.given = {
            leaf.path: getattr(getattr(loaded.config, leaf.section), leaf.name)
            for leaf in leaves()
            if leaf.path in loaded.origins
        }
        self._inputs: Inputs | None = None

    def load(self, values: Mapping[str, Any]) -> Loaded:
        return load(self._flags, above=[Layer(_ADVICE, dict(values))])

    def prepare(self, values: Mapping[str, Any]) -> Prepared:
        loaded = self.load(values)
        folder = run_folder(loaded.config)
        return prepare(loaded.config, loaded.origins, folder, open_both=self._open)

    def _open(
        self,
        config: Config,
        reference: WeightsReference,
        run: Path,
        resolved: dict[str, Any] | None,
        device: torch.device,
    ) -> Inputs:
        if self._inputs is None:
            self._inputs = open_inputs(config, reference, run, resolved, device)
            return self._inputs
        # Adapters and quantised layers are part of the model that is built.
        built = build_model(config, self._inputs.built.classes, reference, device)
        return replace(self._inputs, built=built)

    def measure(self, advice: Advice, limit: int | None) -> Trial:
        """Prepare the run that is advised, and measure a few of its steps."""
        trial = Trial(
            advice.method,
            advice.value("data.batch_size", self.given.get("data.batch_size")),
            advice.value("optim.accumulate", self.given.get("optim.accumulate", 1)),
            bool(
                advice.value(
                    "train.gradient_checkpointing", self.given.get("train.gradient_checkpointing", False)
                )
            ),
        )
        try:
            job = self.prepare(advice.values).job
            with watch_memory(job.device) as watch:
                measured = probe(job)
        except UserError as error:
            return replace(trial, refused=error.happened)
        needed = watch.added
        is_whole = measured.at_once is None
        fits = None if needed is None or limit is None else is_whole and needed <= limit
        seconds = expected_seconds(job, measured)
        return replace(
            trial,
            memory=needed,
            seconds=seconds,
            seconds_per_epoch=seconds * job.pace.steps_per_epoch / job.pace.total_steps,
            fits=fits,
        )


def _search(facts: Facts, bench: _Bench, limit: int | None) -> tuple[Advice, list[Trial]]:
    """The first advice that fits; else the last that could run at all. With what was tried, its own trial last."""
    trials = _tried(options(facts, bench.given), bench, limit)
    if not any(trial.refused is None for _, trial in trials):
        raise UserError(
            f"nothing that was tried can run here; the first: {trials[0][1].refused}",
            "a model and settings that this machine can train",
            "another --model, a smaller --image-size, or fewer settings of your own",
        )
    best = _best(trials)
    return best[0], [*(each for pair in trials if pair is not best for each in pair[1:]), best[1]]


def _tried(each: Iterable[Iterator[Advice]], bench: _Bench, limit: int | None) -> list[tuple[Advice, Trial]]:
    """One after the other, until something fits, which is the last then."""
    trials: list[tuple[Advice, Trial]] = []
    for batches in each:
        needs: list[int] = []
        for advice in batches:
            trial = bench.measure(advice, limit)
            _tell(trial)
            trials.append((advice, trial))
            if trial.refused is None and trial.fits is not False:
                return trials
            if trial.refused is not None and "out of memory" not in trial.refused:
                break  # the same with every batch
            needs += [] if trial.memory is None else [trial.memory]
            # What is left without any image, if memory grows evenly with the batch.
            if limit is not None and len(needs) > 1 and 2 * needs[-1] - needs[-2] > limit:
                break
    return trials


def _best(trials: list[tuple[Advice, Trial]]) -> tuple[Advice, Trial]:
    """What fits; else what takes the least of what could run; else the first."""
    if trials[-1][1].refused is None and trials[-1][1].fits is not False:
        return trials[-1]
    could_run = [pair for pair in trials if pair[1].refused is None]
    return min(could_run, key=lambda pair: pair[1].memory or 0, default=trials[0])


def _strategies(facts: Facts, bench: _Bench, limit: int | None, first: Strategy) -> list[Strategy]:
    """What is advised, and what else is worth a try, in the order of the rules; last what cannot run."""
    found = [first]
    for rule, advice in others(first.advice, facts, bench.given):
        if "method" in rule.sets:
            advice, trial = _best(_tried(forms(advice, facts, bench.given), bench, limit))
            found.append(Strategy(advice.method, rule, advice, trial))
        else:  # another rate costs nothing else
            name = f"{advice.method}-{rule.id.partition('.')[2]}"
            found.append(Strategy(name, rule, advice, first.trial))
    return sorted(found, key=lambda strategy: not strategy.can_run)


def _tell(trial: Trial) -> None:
    what = f"{trial.method}, batch {trial.batch_size} x {trial.accumulate}"
    what += ", gradient checkpointing" if trial.checkpointing else ""
    if trial.refused is not None:
        log.info("tried %s: %s", what, trial.refused)
        return
    memory = "memory not measured here" if trial.memory is None else f"{trial.memory / 2**30:.2f} GB"
    log.info("tried %s: %s, %.1f s per epoch", what, memory, trial.seconds_per_epoch)
