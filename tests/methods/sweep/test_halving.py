"""Who goes on at which rung: by hand, and over whole sweeps of made-up scores."""

from __future__ import annotations

import random

import pytest

from warmstart.methods.sweep.halving import Entry, is_at_rung, next_to_go_on, rungs_of, score_at


def test_rungs_have_validations_before_them() -> None:
    assert rungs_of(2) == ()
    assert rungs_of(3) == rungs_of(8) == (333,)
    assert rungs_of(9) == (111, 333)
    assert rungs_of(1000) == (37, 111, 333)


def test_the_score_at_a_rung_is_the_best_up_to_the_first_validation_behind_it() -> None:
    scores = {100: 0.5, 200: 0.4, 400: 0.6, 900: 0.9}
    assert score_at(scores, 111) == 0.5  # of 100 and 200
    assert score_at(scores, 333) == 0.6
    assert score_at(scores, 950) is None
    assert not is_at_rung(300, 0, (333,)) and is_at_rung(333, 0, (333,)) and not is_at_rung(999, 1, (333,))


def paused(number: int, score: float, **known: int) -> Entry:
    return Entry(number, {333: score}, known.get("num_passed", 0), is_paused=True)


def test_the_best_third_goes_on_and_ties_go_to_the_first() -> None:
    three = [paused(0, 0.5), paused(1, 0.7), paused(2, 0.7)]
    assert next_to_go_on(three, (333,)) == 1
    assert next_to_go_on(three[:2], (333,)) is None, "a third of two is nobody"
    assert next_to_go_on(three[:2], (333,), is_last=True) == 1
    gone = [three[0], Entry(1, {333: 0.7}, 1), three[2]]
    assert next_to_go_on(gone, (333,)) is None
    assert next_to_go_on(gone, (333,), is_last=True) is None, "one of them went on"
    assert next_to_go_on([*gone, paused(3, 0.6), paused(4, 0.1), paused(5, 0.2)], (333,)) == 2
    assert next_to_go_on([], (333,), is_last=True) is None


def test_the_highest_rung_comes_first() -> None:
    low = [Entry(n, {111: 0.1 * n}, 0, True) for n in range(6)]
    high = [Entry(n, {111: 0.55, 333: 0.1 * n}, 1, True) for n in range(6, 9)]
    assert next_to_go_on([*low, *high], (111, 333)) == 8


@pytest.mark.parametrize("seed", range(8))
def test_a_sweep_trains_few_to_the_end_and_finds_the_best_of_steady_trials(seed: int) -> None:
    """As `Search` does it, with one slot: new trials while none may go on, then the last ones."""
    draw = random.Random(seed)
    quality = [draw.random() for _ in range(27)]
    rungs, passed = (111, 333), dict.fromkeys(range(27), 0)
    scores: dict[int, dict[int, float]] = {number: {} for number in range(27)}
    held, waiting = set[int](), [*range(27)]

    def advance(number: int) -> None:
        held.discard(number)
        place = (*rungs, 1000)[passed[number]]
        scores[number][place] = quality[number] * place
        if place < 1000:
            held.add(number)

    while True:
        entries = [Entry(n, scores[n], passed[n], n in held) for n in range(27) if scores[n]]
        number = next_to_go_on(entries, rungs)
        if number is None and waiting:
            advance(waiting.pop(0))
            continue
        number = next_to_go_on(entries, rungs, is_last=True) if number is None else number
        if number is None:
            break
        passed[number] += 1
        advance(number)
    done = [number for number in range(27) if 1000 in scores[number]]
    assert max(range(27), key=lambda number: quality[number]) in done
    assert len(done) <= 8 and sum(max(each) for each in scores.values()) < 27_000 / 2
