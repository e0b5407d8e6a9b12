"""Rules about curves, on curves of known shape."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from warmstart.analysis.diagnose.history import TrainRow
from warmstart.analysis.diagnose.rules_curves import overfitting, rate_too_high, rate_too_low, still_improving
from warmstart.run.reader import Run

RISING = [0.5, 0.6, 0.68, 0.72, 0.74, 0.75, 0.755, 0.757]
FLAT_END = [1.0, 0.7, 0.5, 0.42, 0.4, 0.39, 0.39, 0.39]


def test_overfitting_begins_where_vals_loss_is_least(curves):
    history = curves(
        [0.5, 0.6, 0.7, 0.69, 0.66, 0.64, 0.62],
        [1.0, 0.8, 0.7, 0.75, 0.85, 0.95, 1.1],
        [1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05],
    )
    found = overfitting(history)
    assert found is not None and found.since == 3 and found.score == 0.65
    assert "since epoch 3" in found.title
    assert any("0.7 at epoch 3" in told for told in found.evidence)
    assert found.numbers["drop"] == pytest.approx(0.7 - 0.63)


def test_a_loss_that_rises_alone_is_confidence(curves):
    history = curves(
        [0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7],
        [1.0, 0.8, 0.7, 0.75, 0.85, 0.95, 1.1],
        [1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05],
    )
    found = overfitting(history)
    assert found is not None and found.score == 0.45
    assert "confidence" in found.evidence[-1]


@pytest.mark.parametrize(
    "losses, train",
    [
        (FLAT_END, FLAT_END),
        ([1.0, 0.7, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [1.0, 0.7, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ([1.0, 0.7, 0.5, 0.4, 0.35, 0.3, 0.4, 0.5], FLAT_END),
    ],
    ids=["flat", "train rises too", "train does not fall"],
)
def test_what_is_no_overfitting(curves, losses, train):
    assert overfitting(curves(RISING, losses, train)) is None


def test_still_improving_needs_a_rate_that_is_left(curves):
    losses = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4]
    found = still_improving(curves(RISING, losses, rates=[1e-3] * 8))
    assert found is not None and found.on
    assert found.numbers["rate_left"] == 1
    assert still_improving(curves(RISING, losses, rates=np.linspace(1e-3, 1e-6, 8))) is None
    assert still_improving(curves(RISING, losses, state="running")) is None
    assert still_improving(curves([*RISING, 0.7], [*losses, 0.5])) is None  # the best is not the last


def test_a_loss_far_above_the_start_is_a_rate_too_high(curves):
    start = {"accuracy": 0.6, "loss": 1.2}
    history = curves([0.1, 0.3, 0.2, 0.4, 0.5], [98.0, 13.0, 5.0, 2.0, 1.3], start=start)
    found = rate_too_high(history)
    assert found is not None and found.score == 0.9
    assert "98" in found.evidence[0] and "1.2" in found.evidence[0]
    assert any("of the start was 0.600" in told for told in found.evidence)
    assert (
        rate_too_high(curves([0.6, 0.65, 0.7, 0.72, 0.75], [1.3, 1.1, 1.0, 0.9, 0.85], start=start)) is None
    )


def test_noise_of_val_is_no_rate_too_high(curves):
    """Jumps of one standard error (.02 with 400 images) at a usual rate."""
    val = [0.60, 0.62, 0.61, 0.63, 0.62, 0.64, 0.63]
    assert rate_too_high(curves(val, rates=[1e-3] * 7)) is None


def test_a_loss_that_hardly_moves_is_a_rate_too_low(curves):
    slow = [2.0, 1.98, 1.96, 1.94, 1.92, 1.9]
    found = rate_too_low(curves([0.2, 0.21, 0.22, 0.23, 0.24, 0.25], slow))
    assert found is not None and "5%" in found.evidence[0]
    assert rate_too_low(curves(RISING, FLAT_END)) is None
    assert rate_too_low(curves([0.95] * 6, [0.1, 0.1, 0.099, 0.098, 0.097, 0.09])) is None  # all is learned


def test_too_few_points_say_nothing(curves):
    for rule in (overfitting, still_improving, rate_too_low):
        assert rule(curves([0.5, 0.6])) is None


def test_a_val_loss_that_lags_behind_the_training_is_no_rate_too_high(curves):
    """Running statistics of norms that have not caught up: val 4.9 after the first epoch, the training .46."""
    start = {"accuracy": 0.76, "loss": 0.67}
    history = curves([0.2, 0.66, 0.82, 0.92, 0.95], [4.87, 1.13, 0.52, 0.22, 0.14], start=start)
    assert rate_too_high(history) is not None  # of a program that writes no losses of its steps
    rows = tuple(TrainRow(n, n / 10, 0.46, 1e-3) for n in range(1, 11))
    assert rate_too_high(replace(history, rows=rows)) is None


def test_norms_that_take_in_new_images_hide_no_rate_too_low(curves, diagnosed_run):
    """With their running statistics the loss falls by 40 %, that of the training itself by 5 %."""
    run = Run(diagnosed_run)
    assert run.config["optim"]["lr"] > 1e-5
    slow = [0.36, 0.355, 0.35, 0.35, 0.345, 0.342]
    history = curves([0.9] * 6, [0.3, 0.2, 0.19, 0.19, 0.18, 0.18], rates=[1e-5] * 6)
    means = tuple(enumerate(slow, 1))
    assert rate_too_low(history) is None  # of another program: nobody knows the optimizer
    found = rate_too_low(replace(history, run=run, means=means))
    assert found is not None and "5% only, 0.36 -> 0.342" in found.evidence[0]
