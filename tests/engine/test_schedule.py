"""Learning rate as a function of the step: against formulas by hand, and torch's own schedulers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from warmstart.config.schema import OptimConfig
from warmstart.config.values import Duration
from warmstart.engine.schedule import Plateau, Schedule, make_schedule, warmup_steps

TOTAL, PER_EPOCH = 20, 5
STEPS = range(TOTAL)


def schedule(kind: str, total: int = TOTAL, **optim: object) -> Schedule:
    return make_schedule(OptimConfig(scheduler=kind, lr=0.5, **optim), total, PER_EPOCH)


def torch_rates(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], num: int = TOTAL
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(num):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_warmup_of_a_stage_is_a_factor_for_its_first_steps() -> None:
    plain, staged = schedule("cosine"), schedule("cosine", stage_warmup=Duration(4, "steps"))
    assert [staged.shape(step) for step in STEPS] == [plain.shape(step) for step in STEPS]  # the first stage
    factors = [staged.shape(step, 1.0, 0.5, 6) / plain.shape(step) for step in range(6, 14)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5])


def test_no_schedule_is_the_planned_rate() -> None:
    assert [schedule("none").shape(step) for step in STEPS] == [1.0] * TOTAL


def test_cosine_is_torchs_and_no_step_is_spent_at_rate_zero() -> None:
    shapes = [schedule("cosine", min_lr=0.05).shape(step) for step in STEPS]
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.1))
    assert shapes == pytest.approx(expected, abs=1e-12)
    assert shapes[0] == 1.0 and schedule("cosine").shape(TOTAL - 1) > 0
    assert schedule("cosine").shape(5) == pytest.approx(0.5 * (1 + math.cos(math.pi * 5 / 20)))


def test_linear_is_torchs_and_no_step_is_spent_at_rate_zero() -> None:
    shapes = [schedule("linear", min_lr=0.05).shape(step) for step in STEPS]
    expected = torch_rates(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=TOTAL)
    )
    assert shapes == pytest.approx(expected, abs=1e-12)
    assert schedule("linear").shape(TOTAL - 1) == pytest.approx(1 / TOTAL)


def test_step_is_torchs_down_to_the_floor() -> None:
    made = schedule("step", scheduler_step="3steps", scheduler_gamma=0.5, min_lr=0.5 * 0.1)
    expected = torch_rates(lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5))
    assert [made.shape(step) for step in STEPS] == pytest.approx([max(0.1, rate) for rate in expected])
    assert schedule("step", scheduler_step="2epochs").shape(10) == 0.5  # gamma .5 by default


def test_exponential_drops_once_per_epoch() -> None:
    shapes = [schedule("exponential", scheduler_gamma=0.9).shape(step) for step in STEPS]
    per_epoch = torch_rates(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9), TOTAL // PER_EPOCH)
    assert shapes == pytest.approx([rate for rate in per_epoch for _ in range(PER_EPOCH)])
    assert schedule("exponential").shape(PER_EPOCH) == 0.95
    assert schedule("exponential", scheduler_gamma=0.1, min_lr=0.05).shape(TOTAL - 1) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["none", "cosine", "linear", "step", "exponential", "plateau"])
def test_warmup_rises_in_equal_parts_and_the_shape_begins_after_it(kind: str) -> None:
    made = schedule(kind, total=16, warmup="4steps", min_lr=0.1)
    assert [made.shape(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    without = make_schedule(OptimConfig(scheduler=kind, lr=0.5, min_lr=0.1), 12, PER_EPOCH)
    assert [made.shape(step) for step in range(4, 16)] == [without.shape(step) for step in range(12)]


def test_warmup_is_given_in_steps_epochs_or_a_share() -> None:
    assert warmup_steps(None, 100, 10) == 0
    assert warmup_steps(Duration(7, "steps"), 100, 10) == 7
    assert warmup_steps(Duration(1.5, "epochs"), 100, 10) == 15
    assert warmup_steps(Duration(0.1, "share"), 100, 10) == 10
    assert warmup_steps(Duration(50, "epochs"), 100, 10) == 99  # the last step has the full rate
    assert warmup_steps(Duration(1, "epochs"), 1, 10) == 0
    assert schedule("cosine", total=1).shape(0) == 1.0  # a run of one step trains


def test_plateau_is_torchs() -> None:
    generator = torch.Generator().manual_seed(3)
    losses = (1 + 0.02 * torch.randn(60, generator=generator)).tolist()
    # Gains below the threshold do not count.
    losses += [math.nan, *[0.9 * (1 - 5e-5) ** n for n in range(12)]]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=3, min_lr=0.05)
    made = schedule("plateau", scheduler_gamma=0.7, min_lr=0.025)
    state, shapes, rates = Plateau(), [], []
    for loss in losses:
        expected.step(loss)
        state = state.observe(loss, gamma=0.7, patience=3)
        rates.append(optimizer.param_groups[0]["lr"])
        shapes.append(made.shape(0, state.factor))
    assert shapes == pytest.approx(rates)
    assert len(set(rates)) > 4 and min(rates) == 0.05


def test_patience_zero_drops_at_the_first_bad_validation() -> None:
    state = Plateau().observe(1.0, 0.95, 0)
    assert state.factor == 1.0
    assert state.observe(1.0, 0.95, 0) == Plateau(0.95, 1.0, 0)


def test_the_default_factor_of_a_plateau_is_the_documents() -> None:
    assert make_schedule(OptimConfig(scheduler="plateau"), 10, 5).gamma == 0.95
    assert OptimConfig().scheduler_patience == 4


def test_a_shape_depends_on_the_step_and_the_state_only() -> None:
    for kind in ("cosine", "linear", "step", "exponential", "plateau"):
        made = schedule(kind, warmup="3steps")
        forward = [made.shape(step, 0.5) for step in STEPS]
        assert [made.shape(step, 0.5) for step in reversed(STEPS)] == forward[::-1]


def test_no_rate_ever_rises_after_warmup() -> None:
    for kind in ("cosine", "linear", "step", "exponential"):
        shapes = [schedule(kind, warmup="3steps", min_lr=0.01).shape(step) for step in range(3, TOTAL + 5)]
        assert all(later <= earlier for earlier, later in itertools.pairwise(shapes))
        assert min(shapes) >= 0.02 - 1e-15
