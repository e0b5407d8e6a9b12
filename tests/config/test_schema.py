"""The schema is frozen, closed, described, and small enough to be read."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from warmstart.cli import main
from warmstart.config.schema import (
    MAIN_LEAVES,
    OWN_FLAGS,
    PREFIXED,
    RARE,
    SELECTION_METRICS,
    Config,
    OptimConfig,
    leaves,
)

LEAVES = list(leaves())


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.path)
def test_every_leaf_says_what_it_is(leaf):
    assert len(leaf.description) >= 10
    assert "\n" not in leaf.description  # it stands behind its value in a YAML


def test_flags_are_unique_and_bare():
    flags = [leaf.flag for leaf in LEAVES]
    assert len(flags) == len(set(flags))
    for leaf in LEAVES:
        main_leaf = MAIN_LEAVES.get(leaf.section) == leaf.name
        name = f"{leaf.section}.{leaf.name}" if leaf.section in PREFIXED else leaf.name
        own = OWN_FLAGS.get(leaf.section, leaf.section)
        assert leaf.flag == (own if main_leaf else name.replace("_", "-"))


def test_help_shows_at_most_60_flags(capsys):
    assert main(["finetune", "--help"]) == 0
    shown = set(re.findall(r"(?<=\s)--[a-z][a-z-]*(?:\.[a-z]+)?", capsys.readouterr().out))
    own = {flag for flag in shown if not flag.startswith("--no-")}
    assert {f"--{leaf.flag}" for leaf in LEAVES if not leaf.is_rare} <= own
    rare = {name for leaf in LEAVES if leaf.is_rare for name in (leaf.name, leaf.path)}
    assert rare >= RARE and all({leaf.name, leaf.path} & RARE for leaf in LEAVES if leaf.is_rare)
    assert len(own) <= 60
    assert main(["finetune", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{leaf.flag} " in text for leaf in LEAVES)


def test_nothing_can_be_changed_after_parsing():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.optim = OptimConfig()  # type: ignore[misc]


def test_extra_keys_are_forbidden():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config.model_validate({"optim": {"lrr": 1}})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config.model_validate({"optimizer": {}})


def test_the_defaults_are_valid_values():
    """Pydantic does not check defaults; a wrong one would show up in a reloaded config only."""
    config = Config()
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    "leaf", [leaf for leaf in LEAVES if leaf.annotation is not bool], ids=lambda x: x.path
)
def test_true_is_not_the_number_one(leaf):
    with pytest.raises(ValidationError, match="this setting is not a yes or no"):
        Config.model_validate({leaf.section: {leaf.name: True}})


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_are_finite(name, value):
    with pytest.raises(ValidationError, match=r"finite|greater than"):
        OptimConfig.model_validate({name: value})


def test_selection_metrics_are_the_choices():
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"train": {"select_by": "nothing"}})
    assert set(re.findall(r"'(\w+)'", str(caught.value).split("[type")[0])) - {"nothing", "auto"} == set(
        SELECTION_METRICS
    )
