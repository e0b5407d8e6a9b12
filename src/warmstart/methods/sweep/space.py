"""What is varied, as Optuna's distributions; the values of the trials that wait in a study's queue."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from warmstart.config.sweep_values import Choice, Range, Space, written
from warmstart.methods.sweep.request import Request, grid_of

_NUM_STARTUP = 10  # random trials before TPE has something to learn from, Optuna's number


def queue(request: Request, first: int, end: int) -> list[dict[str, Any]]:
    """The values of trials from `first` to before `end`; empty where TPE will draw them."""
    settings = request.settings
    distributions = distributions_of(settings.set)
    if settings.searched_by == "grid":
        return [
            {name: _typed(distributions[name], value) for name, value in values.items()}
            for values in grid_of(settings)[first:end]
        ]
    draw = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=settings.seed))
    num = end if settings.searched_by == "random" else min(end, _NUM_STARTUP)
    drawn = [draw.ask(distributions).params for _ in range(num)]
    return [drawn[number] if number < num else {} for number in range(first, end)]


def _typed(distribution: BaseDistribution, value: str) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    return {name: _distribution(values) for name, values in space}


def _distribution(values: Choice | Range) -> BaseDistribution:
    if isinstance(values, Choice):
        return CategoricalDistribution(values.values)
    if values.is_int:
        step = 1 if values.step is None else int(values.step)
        return IntDistribution(int(values.low), int(values.high), log=values.is_log, step=step)
    return FloatDistribution(values.low, values.high, log=values.is_log, step=values.step)


def suggested(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return str(trial.suggest_categorical(name, distribution.choices))
    if isinstance(distribution, IntDistribution):
        return str(
            trial.suggest_int(
                name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
            )
        )
    assert isinstance(distribution, FloatDistribution), distribution
    number = trial.suggest_float(
        name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
    )
    return number_of(number)


def number_of(number: float) -> str:
    """As people would write it: what was drawn between two ends needs no more than six digits."""
    return str(number) if isinstance(number, int) else written(float(f"{number:.6g}"))
