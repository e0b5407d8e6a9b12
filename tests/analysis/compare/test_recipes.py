"""Recipes: seeds are chance as well as samples, and few of them prove little."""

from __future__ import annotations

import numpy as np
import pytest

from warmstart.analysis.compare.recipes import hierarchical
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.verbs.looking import compare

TARGETS = np.arange(400) % 3


@pytest.fixture
def recipes(write_run):
    """Three seeds each: `shares` of the right answers."""

    def write(first: tuple[float, ...], second: tuple[float, ...]) -> list[str]:
        found = []
        for name, shares in (("a", first), ("b", second)):
            runs = []
            for seed, share in enumerate(shares):
                right = np.random.default_rng(seed).permutation(400) < share * 400
                runs.append(str(write_run(f"{name}{seed}", right, TARGETS, seed=seed)))
            found.append(",".join(runs))
        return found

    return write


def test_a_difference_that_all_seeds_show_is_told(recipes, capsys):
    groups = recipes((0.70, 0.71, 0.69), (0.82, 0.83, 0.81))
    found = compare(recipes=groups)
    assert found.direction == 1 and found.verdict == "recipe B is better than recipe A on test"
    assert found.main.difference == pytest.approx(0.12)
    assert main(["compare", "--recipes", *groups, "--require", "accuracy better by 2pt"]) == 0
    assert capsys.readouterr().out.startswith(
        "recipe B is better than recipe A on test: accuracy 0.7000 -> 0.8200"
    )
    assert found.to_json()["question"] == "recipes"


def test_what_one_seed_makes_of_it_is_not_told_but_how_many_seeds_would(recipes):
    found = compare(recipes=recipes((0.70, 0.74, 0.66), (0.78, 0.66, 0.75)))
    assert found.direction == 0 and found.enough is not None and found.enough > 3
    assert f"with 3 and 3 seeds and 400 samples (about {found.enough} a side would do" in found.text()


def test_fewer_than_three_seeds_or_one_seed_twice_are_refused(recipes, write_run):
    first, second = recipes((0.7, 0.7, 0.7), (0.7, 0.8, 0.9))
    with pytest.raises(UserError, match="recipe B has 2 runs"):
        compare(recipes=[first, second.rpartition(",")[0]])
    again = write_run("again", np.full(400, True), TARGETS, seed=1)
    with pytest.raises(UserError, match="runs with one seed"):
        compare(recipes=[first, second.rpartition(",")[0] + f",{again}"])
    other = write_run("other", np.full(400, True), TARGETS, seed=7, lr=0.5)
    found = compare(recipes=[first, second.rpartition(",")[0] + f",{other}"])
    assert any("differ in more than their seed: lr" in note for note in found.notes)
    with pytest.raises(UserError, match="beside --recipes"):
        compare([first], recipes=[first, second])
    with pytest.raises(UserError, match="1 recipes"):
        compare(recipes=[first])


def test_seeds_and_samples_add_up_to_the_variance_of_the_mean():
    """Seeds of variance 4, 3 and 5 of them: 4 / 3 + 4 / 5; what a resample does to all of them falls out."""
    rng = np.random.default_rng(0)
    variances = []
    for number in range(200):
        shared = rng.normal(size=500)
        first, second = (rng.normal(scale=2, size=(size, 1)) + shared for size in (3, 5))
        variances.append(hierarchical(first, second, 500, number).var())
    assert np.mean(variances) == pytest.approx(4 / 3 + 4 / 5, rel=0.1)
