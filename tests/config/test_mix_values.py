"""Shares of other data sets: one parser for flags, YAML and Python, and refusals that name the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from warmstart.config.io import from_dict, load, to_yaml
from warmstart.config.mix_rules import at_places, source_paths
from warmstart.config.mix_values import Share, by_path, parse_mix, parse_mix_classes, share_at
from warmstart.errors import UserError


@pytest.mark.parametrize(
    "value", ["A=.8:5epochs,A=.2,B=.1", ["A=.8:5", "A=.2", "B=.1"], parse_mix("A=.8:5epochs,A=.2,B=.1")]
)
def test_every_written_form_is_the_same(value: Any) -> None:
    shares = parse_mix(value)
    assert shares == (Share("A", 0.8, 5), Share("A", 0.2), Share("B", 0.1))
    own = by_path(shares)["A"]
    assert [share_at(own, epoch) for epoch in (0, 4, 5, 99)] == [0.8, 0.8, 0.2, 0.2]
    assert parse_mix([str(share) for share in shares]) == shares


def test_no_digit_of_a_share_is_lost() -> None:
    shares = parse_mix("A=.1666667,B=.1666667,C=.6666666")
    assert parse_mix([str(share) for share in shares]) == shares


def test_a_mapping_and_odd_paths() -> None:
    assert parse_mix({"C:\\data": 0.5, "torchvision:MNIST@/x=y": ".25:2epochs"}) == (
        Share("C:\\data", 0.5),
        Share("torchvision:MNIST@/x=y", 0.25, 2),
    )


def test_after_its_last_limit_a_data_set_has_no_share() -> None:
    assert share_at(parse_mix("A=1:10epochs"), 10) == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("A", "not of the form"),
        ("A=x", "not of the form"),
        ("A=1.5", "between 0 and 1"),
        ("A=-.5", "between 0 and 1"),
        ("A=nan", "between 0 and 1"),
        ("A=.5:10steps", "whole epochs"),
        ("A=.5:1.5epochs", "whole epochs"),
        ("A=.5,A=.2", "needs a limit"),
        ("A=.5:9epochs,A=.2:3epochs", "limits rise"),
    ],
)
def test_what_is_no_share_is_refused(value: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_mix(value)


def test_classes() -> None:
    assert parse_mix_classes("union") == "union"
    assert parse_mix_classes("kitty=cat,doggy=dog") == (("kitty", "cat"), ("doggy", "dog"))
    with pytest.raises(ValueError, match="twice"):
        parse_mix_classes("kitty=cat,kitty=dog")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ABC":
        Path(name).mkdir()


@pytest.mark.usefixtures("folders")
def test_a_config_comes_back_from_its_yaml(tmp_path: Path) -> None:
    given = {"data": "A", "model": "builtin:fashion_cnn", "mix": "B=.8:5epochs,B=.2", "mix_classes": "x=y"}
    loaded = load({**given, "retain": "C", "retain.l2sp": 0.5})
    (tmp_path / "again.yaml").write_text(to_yaml(loaded.config, loaded.origins))
    assert load({}, str(tmp_path / "again.yaml")).config == loaded.config
    assert from_dict(loaded.config.model_dump(mode="json")) == loaded.config
    assert source_paths(loaded.config) == ("B", "C")
    moved = at_places(loaded.config, ("/x/B", "/x/C"))
    assert source_paths(moved) == ("/x/B", "/x/C") and [s.amount for s in moved.data.mix] == [0.8, 0.2]


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mix": "B=.6,C=.6"}, "add up to 1.2 in epoch 0"),
        ({"mix": "B=.2:3epochs,B=.9", "retain": "C", "retain.replay": 0.2}, "add up to 1.1 in epoch 3"),
        ({"mix": "B=2"}, "between 0 and 1"),
        ({"mix": "B=0"}, "gives B no place in any epoch"),
        ({"mix": "B=.5:6epochs", "epochs": 5}, "the run has only 5 epochs"),
        ({"mix": "B=.5:5epochs,B=.1", "epochs": 5}, "the run has only 5 epochs"),
        ({"mix": "A=.5"}, "--mix A is the data set of --data"),
        ({"retain": "A"}, "--retain A is the data set of --data"),
        ({"mix": "D=.5"}, "--mix: D does not exist"),
        ({"retain": "D"}, "--retain: D does not exist"),
        ({"retain.ewc": 3.0}, "--retain.ewc 3 without --retain"),
        ({"retain": "C", "retain.lwf": -1.0}, "--retain.lwf"),
        ({"retain": "C", "retain.replay": 1.0}, "--retain.replay"),
        ({"mix_classes": "union"}, "--mix-classes without --mix"),
    ],
)
def test_contradictions_are_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        load({"data": "A", "model": "builtin:fashion_cnn", **given})


@pytest.mark.usefixtures("folders")
def test_settings_that_nothing_reads_are_named() -> None:
    base = {"data": "A", "model": "builtin:fashion_cnn", "retain": "B"}
    for name, reader in (("images", "replay"), ("ewc_images", "ewc"), ("temperature", "lwf")):
        (warning,) = load({**base, f"retain.{name}": 7}).warnings
        assert warning.startswith(
            f"--retain.{name.replace('_', '-')} has no effect without --retain.{reader}"
        )
    assert not load({**base, "retain_replay": 0.1, "retain_images": 7}).warnings
