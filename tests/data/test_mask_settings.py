from __future__ import annotations

import json

import pytest

from warmstart.data.mask_settings import MaskSettings, read_legend
from warmstart.errors import UserError

NAMES = ("sky", "left road", "tree")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("classes.txt", "sky\nleft road\n\ntree\n"),
        ("codes.txt", "0: sky\n1: left road\n2: tree"),
        ("classes.txt", "0 sky\n1 left road\n2 tree"),
        ("classes.json", json.dumps(NAMES)),
        ("classes.json", json.dumps({"2": "tree", "0": "sky", "1": "left road"})),
        ("classes.json", json.dumps({"tree": 2, "sky": 0, "left road": 1})),
        ("classes.json", json.dumps({"id2label": {"0": "sky", "1": "left road", "2": "tree"}})),
    ],
)
def test_names_beside_the_data(tmp_path, name, content):
    assert read_legend(MaskSettings(), tmp_path).names is None
    (tmp_path / name).write_text(content)
    legend = read_legend(MaskSettings(), tmp_path)
    assert legend.names == NAMES and legend.notes == (f"classes by {name}",)
    (tmp_path / name).rename(tmp_path / f"my{name}")
    assert read_legend(MaskSettings(classes=(f"my{name}",)), tmp_path).names == NAMES
    assert read_legend(MaskSettings(classes=(str(tmp_path / f"my{name}"),)), tmp_path / "x").names == NAMES
    assert read_legend(MaskSettings(classes=("a", "b")), tmp_path).names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": "a", "2": "b"}', "the ids are not 0 to 1"),
        ("3", "no list of names"),
        ("{", "line 1"),
        ('["a"]', "names a"),
    ],
)
def test_files_that_name_no_classes(tmp_path, content, message):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_legend(MaskSettings(), tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb")
    with pytest.raises(UserError, match=r"--mask-classes name.txt: there is no such file(.|\n)*'names.txt'"):
        read_legend(MaskSettings(classes=("name.txt",)), tmp_path)


def test_the_ignored_id_among_the_classes(tmp_path):
    legend = read_legend(MaskSettings(classes=("sky", "road", "void"), ignore=2), tmp_path)
    assert legend.names == ("sky", "road") and legend.ignore == 2
    assert legend.notes == ("the last of the classes, void, has the ignored id 2 and is none",)
    with pytest.raises(
        UserError, match=r"ignored id 0 is the class 'void'(.|\n)*--mask-remap 0=255,1=0,2=1, without"
    ):
        read_legend(MaskSettings(classes=("void", "sky", "road"), ignore=0), tmp_path)
    many = tuple(map(str, range(300)))
    assert read_legend(MaskSettings(classes=many), tmp_path).ignore == 65535
    with pytest.raises(UserError, match="hold 'a' twice"):
        read_legend(MaskSettings(classes=("a", "a")), tmp_path)


TABLE = {(64, 128, 64): 0, (192, 0, 128): 1, (0, 0, 0): 2}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("name,r,g,b\nAnimal,64,128,64\nCart 2,192,0,128\nVoid,0,0,0", ("Animal", "Cart 2", "Void")),
        ("64 128 64\t\tAnimal\n192 0 128\tCart 2\n0 0 0\tVoid\n", ("Animal", "Cart 2", "Void")),
        ("0,0,0,2\n64,128,64,0\n192,0,128,1\n", None),
        ("64.128.64=0\n192.0.128=1\n0.0.0=2", None),
        ("64 128 64\n192 0 128\n0 0 0", None),
    ],
)
def test_files_of_colours(tmp_path, content, names):
    (tmp_path / "colours.txt").write_text(content)
    legend = read_legend(MaskSettings(colours="colours.txt"), tmp_path)
    assert legend.coding.colours == TABLE and legend.names == names
    named = MaskSettings(colours="colours.txt", classes=("x", "y", "z"))
    assert read_legend(named, tmp_path).names == ("x", "y", "z")


def test_colours_as_written_and_wrong_ones(tmp_path):
    legend = read_legend(MaskSettings(colours="64.128.64=0,192.0.128=1,0.0.0=2"), tmp_path)
    assert legend.coding.colours == TABLE
    for content, message in (
        ("1 2", "is no colour"),
        ("1 2 300", "is no colour"),
        ("1 2 3 0\n1 2 3 1", "two ids"),
        ("", "no colours"),
    ):
        (tmp_path / "c.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            read_legend(MaskSettings(colours="c.txt"), tmp_path)


def test_flip_pairs_by_name_or_number():
    rules = MaskSettings(flip_pairs=(("left", "right"), ("3", "4"))).rules(
        ("sky", "left", "right", "a", "b"), 11
    )
    assert rules.flip_pairs == ((1, 2), (3, 4)) and rules.ignore == 11
    with pytest.raises(UserError, match=r"'rigth' are no classes(.|\n)*Did you mean 'right'"):
        MaskSettings(flip_pairs=(("left", "rigth"),)).rules(("left", "right"), 255)
