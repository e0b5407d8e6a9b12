from __future__ import annotations

import pytest

from warmstart.config import io
from warmstart.config.mask_values import colour_table, parse_colours, parse_flip_pairs, parse_remap
from warmstart.errors import UserError


def test_remap():
    for value in ("11=255,12=3", {11: 255, "12": 3}, [[11, 255], [12, 3]], ["11=255", "12=3"]):
        assert parse_remap(value) == ((11, 255), (12, 3))
    assert parse_remap("-1=255") == ((-1, 255),)
    assert parse_remap(None) == parse_remap("none") == ()


@pytest.mark.parametrize("value", ["11", "11=x", "a=1", "11=70000", "11=-1", "1=2,1=3"])
def test_what_is_no_remap(value):
    with pytest.raises(ValueError, match=r"form|id|twice"):
        parse_remap(value)


def test_colours():
    for value in ("128.64.128=0,0.0.142=11", {"128.64.128": 0, "0 0 142": 11}):
        assert parse_colours(value) == "128.64.128=0,0.0.142=11"
    assert colour_table("128.64.128=0,0.0.142=11") == {(128, 64, 128): 0, (0, 0, 142): 11}
    assert parse_colours("class_dict.csv") == "class_dict.csv" and parse_colours("none") is None


@pytest.mark.parametrize("value", ["128.64=0", "1.2.300=0", "1.2.3=x", "1.2.3=0,1.2.3=1"])
def test_what_is_no_colour(value):
    with pytest.raises(ValueError, match=r"colour|id|twice"):
        parse_colours(value)


def test_flip_pairs():
    assert parse_flip_pairs("left:right, 3:4") == (("left", "right"), ("3", "4"))
    for value in ("left", "left:right,left:x", "a:a"):
        with pytest.raises(ValueError, match=r"form|twice"):
            parse_flip_pairs(value)


def test_all_problems_at_once(tmp_path):
    flags = {"data": str(tmp_path), "model": "builtin:fashion_cnn", "ignore": -1, "mask_remap": "1=x"}
    flags |= {"mask_classes": "clases.txt", "mask_colours": "colours.csv", "flip_pairs": "a"}
    (tmp_path / "classes.txt").touch()
    with pytest.raises(UserError) as caught:
        io.load(flags)
    for part in (
        "--ignore",
        "--mask-remap",
        "--flip-pairs",
        "--mask-classes: clases.txt does not",
        "--mask-colours",
    ):
        assert part in str(caught.value)


def test_a_written_config_is_read_back(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb")
    flags = {"data": str(tmp_path), "model": "builtin:fashion_cnn", "ignore": "11", "mask_remap": "12=3"}
    flags |= {
        "mask_classes": "names.txt",
        "mask_colours": "1.2.3=0",
        "flip_pairs": "a:b",
        "masks": "outlines",
    }
    config = io.load(flags).config
    path = tmp_path / "c.yaml"
    path.write_text(io.to_yaml(config, {}))
    assert io.load({}, str(path)).config == config
    assert config.data.ignore == 11 and config.data.mask_remap == ((12, 3),)
