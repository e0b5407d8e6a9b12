"""Turns of several tasks: shares, places, spread, and that (seed, epoch) alone decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from warmstart.config.schema import Config
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.data.task_windows import longest_wait, task_places, task_windows


def config(sampling: str = "proportional", **optim: Any) -> Config:
    return Config.model_validate(
        {"data": {"batch_size": 8}, "tasks": {"sampling": sampling}, "optim": optim, "train": {"seed": 3}}
    )


def samples(num: int) -> Samples:
    ids = tuple(f"{number}.png" for number in range(num))
    return Samples(ids, np.arange(num) % 2, ArrayPixels(np.zeros((num, 2, 2), np.uint8)))


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        ("proportional", [0.8, 0.16, 0.04]),
        ("equal", [1 / 3, 1 / 3, 1 / 3]),
        # N^(1/2): 20, 8.944, 4.472 of 33.416
        ("temperature=2", [20 / 33.4164, 8.94427 / 33.4164, 4.47214 / 33.4164]),
    ],
)
def test_an_epoch_gives_each_task_its_share_of_places(sampling: str, shares: list[float]) -> None:
    sizes = [400, 80, 20]
    numbers = task_places(config(sampling), sizes)
    assert sum(numbers) == 500
    np.testing.assert_allclose(np.array(numbers) / 500, shares, atol=1 / 500)


def test_proportional_shows_every_image_once_and_equal_repeats_the_small_evenly() -> None:
    training = [samples(50), samples(13)]

    def shown(sampling: str, task: int, epoch: int = 0) -> Counter[int]:
        windows = task_windows(config(sampling), training, epoch)
        return Counter(
            int(place) % len(training[task])
            for window in windows
            for m in window
            if m.task == task
            for place in m.places
        )

    assert set(shown("proportional", 0).values()) == set(shown("proportional", 1).values()) == {1}
    assert len(shown("proportional", 0)) == 50
    repeated = shown("equal", 1)
    assert len(repeated) == 13
    assert max(repeated.values()) - min(repeated.values()) <= 1
    assert sum(repeated.values()) in (31, 32)
    assert set(shown("equal", 0, 0)) != set(shown("equal", 0, 1)), (
        "each epoch shows another part of the large one"
    )


def test_windows_follow_from_seed_and_epoch_and_have_as_many_micro_batches_as_asked() -> None:
    training = [samples(50), samples(13)]
    first, again = (task_windows(config(accumulate=3), training, 5) for _ in range(2))
    assert [[m.task for m in w] for w in first] == [[m.task for m in w] for w in again]
    assert all(
        (a.places == b.places).all()
        for x, y in zip(first, again, strict=True)
        for a, b in zip(x, y, strict=True)
    )
    other = task_windows(config(accumulate=3), training, 6)
    assert [m.task for w in first for m in w] != [m.task for w in other for m in w]
    assert [len(window) for window in first[:-1]] == [3] * (len(first) - 1)
    assert len(first) == len(other)
    assert min(len(m.places) for w in first for m in w) >= 2, "a norm layer cannot learn from one image"


def test_tasks_are_spread_over_the_epoch() -> None:
    windows = task_windows(config(), [samples(400), samples(40)], 0)
    at = [step for step, (micro,) in enumerate(windows) if micro.task == 1]
    assert len(at) == 5
    assert all(0 <= step - number * 11 <= 12 for number, step in enumerate(at)), at
    assert max(np.diff(at)) <= longest_wait(windows) <= 22
