"""Sets of labels, label columns, groups and class numbers in CSV and parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.labels import group_codes, read_labels
from warmstart.data.sources import open_source
from warmstart.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """A CSV file with a column `path` in front of the columns given, and the images it names."""

    def write(**columns: list[object]) -> Path:
        num = len(next(iter(columns.values())))
        for number in range(num):
            (tmp_path / f"{number}.png").write_bytes(png(number))
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(("path", *columns))]
        lines += [f"{number}.png," + ",".join(map(str, row)) for number, row in enumerate(rows)]
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "t.csv"

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """A parquet file of images in bytes with these columns, described as Hugging Face does by `features`."""

    def write(features: dict[str, object] | None = None, name: str = "t.parquet", **columns: object) -> Path:
        num = len(next(iter(columns.values())))  # type: ignore[arg-type]
        table = pa.table({"image_bytes": [png(number) for number in range(num)], **columns})
        if features is not None:
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, tmp_path / name, row_group_size=2)
        return tmp_path / name

    return write


# ---- sets in one column


def test_one_separator_makes_every_row_a_set(write_csv) -> None:
    source = open_source(write_csv(label=["b", " c | a ", "a||b", "a|a", "", "c"]))
    assert source.classes == ("a", "b", "c")
    targets = source.splits["all"].targets
    assert targets.dtype == np.uint8
    assert targets.tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert "t.csv: the column label: labels are sets: multi-label with 3 classes" in source.notes


def test_sets_of_numbers_are_sorted_as_numbers(write_csv) -> None:
    assert open_source(write_csv(tags=["10|9", "2", "9"])).classes == ("2", "9", "10")


def test_a_separator_in_val_only_makes_sets_of_all_splits(write_csv) -> None:
    path = write_csv(label=["a", "b", "a|b"], split=["train", "train", "val"])
    source = open_source(path)
    assert source.splits["train"].targets.tolist() == [[1, 0], [0, 1]]
    assert source.splits["val"].targets.tolist() == [[1, 1]]


def test_a_label_of_val_that_train_lacks_is_refused(write_csv) -> None:
    with pytest.raises(UserError, match=r"val has 'cats', train has not\. Did you mean 'cat'\?"):
        open_source(write_csv(label=["cat|dog", "dog", "cats|dog"], split=["train", "train", "val"]))


def test_blank_labels_without_a_separator_are_refused(write_csv) -> None:
    with pytest.raises(UserError, match="the column label is empty in 1 rows: row 2"):
        open_source(write_csv(label=["a", "", "b"]))


def test_one_label_for_all_is_refused(write_csv) -> None:
    with pytest.raises(UserError, match="has one class only: a"):
        open_source(write_csv(label=["a|a", "a", ""]))
    with pytest.raises(UserError, match="holds no label at all"):
        open_source(write_csv(label=["|", "", ""]))


def test_twins_are_told_apart_by_their_sets(write_csv) -> None:
    path = write_csv(label=["a|b", "b"])
    path.write_text(path.read_text() + "0.png,b|a\n")
    assert len(open_source(path).splits["all"]) == 2
    path.write_text(path.read_text() + "1.png,\n")
    with pytest.raises(UserError, match=r"lists 1 images twice.*1\.png \(b and no label\)"):
        open_source(path)


# ---- label columns


def test_label_columns(write_csv) -> None:
    path = write_csv(dog=[1, 0, "", "yes"], Cat=["true", "False", "1.0", "NO"], size=[3, 4, 5, 6])
    source = open_source(path, label_columns=("dog", "cat"))
    assert source.classes == ("Cat", "dog")
    assert source.splits["all"].targets.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert source.notes[:2] == (
        "t.csv: labels are sets: multi-label with 2 classes",
        "t.csv: ignored the columns size",
    )


def test_label_columns_in_parquet(write_parquet) -> None:
    path = write_parquet(dog=[True, False, None], cat=[1.0, 0.0, 1.0], label=["x", "y", "z"])
    source = open_source(path, label_columns=("cat", "dog"))
    assert source.splits["all"].targets.tolist() == [[1, 1], [0, 0], [1, 0]]
    with pytest.raises(UserError, match=r"no column 'dgo'(.|\n)*Did you mean 'dog'\?"):
        open_source(path, label_columns=("cat", "dgo"))


def test_a_label_called_group_is_no_group(write_csv, write_parquet) -> None:
    columns = {"group": [1, 0, 1], "single": [0, 1, 1]}
    for path in (write_csv(**columns), write_parquet(**columns)):
        source = open_source(path, label_columns=("group", "single"))
        assert source.splits["all"].groups is None
        assert source.splits["all"].targets.tolist() == [[1, 0], [0, 1], [1, 1]]


def test_label_columns_that_are_refused(write_csv) -> None:
    path = write_csv(dog=[1, 0, 2], cat=["maybe", 1, 0], none=[0, 0, 0])
    with pytest.raises(UserError, match=r"no column 'dogs', 'bird'(.|\n)*path, dog, cat(.|\n)*'dog'\?"):
        open_source(path, label_columns=("dogs", "bird", "cat"))
    with pytest.raises(UserError) as caught:
        open_source(path, label_columns=("dog", "cat"))
    assert "the column dog holds '2' in row 3" in str(caught.value)
    assert "the column cat holds 'maybe' in row 1" in str(caught.value)
    path = write_csv(dog=[1, 0, 0, 1] * 5, none=[0] * 20)
    with pytest.raises(UserError, match="without training images: none"):
        open_dataset(DataConfig(path=str(path), label_columns=("dog", "none")), seed=0)


# ---- lists in parquet


def test_lists_of_text(write_parquet) -> None:
    source = open_source(write_parquet(labels=[["b", "a"], [], None, ["a", None]]))
    assert source.classes == ("a", "b")
    assert source.splits["all"].targets.tolist() == [[1, 1], [0, 0], [0, 0], [1, 0]]


NAMES = {"names": ["zebra", "ant", "bee"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "described", [[NAMES], {"feature": NAMES, "_type": "Sequence"}, {"feature": NAMES, "_type": "List"}]
)
def test_lists_of_class_labels(write_parquet, described: object) -> None:
    path = write_parquet({"labels": described}, labels=[[0, 2], [1], [2, 0]])
    source = open_source(path)
    assert source.classes == ("zebra", "ant", "bee")
    assert source.splits["all"].targets.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    path = write_parquet({"labels": described}, labels=[[0, 3], [1]])
    with pytest.raises(UserError, match=r"labels without a name: 3 \(1 rows\)"):
        open_source(path)


def test_text_with_separators_in_parquet(write_parquet) -> None:
    source = open_source(write_parquet(label=["a|b", None, "b"]))
    assert source.splits["all"].targets.tolist() == [[1, 1], [0, 0], [0, 1]]


# ---- groups


def test_equal_cells_are_one_group_over_all_splits(write_csv, write_parquet) -> None:
    columns = {"label": ["a", "b"] * 3, "split": ["train"] * 4 + ["val"] * 2}
    columns |= {"group": ["p1", "p2", "p1", "", "p2", ""]}
    for path in (write_csv(**columns), write_parquet(**columns)):
        source = open_source(path)
        train, val = source.splits["train"].groups, source.splits["val"].groups
        assert train.tolist() == [0, 1, 0, 2] and val.tolist() == [1, 3]
        assert f"{path.name}: 4 groups by the column group" in source.notes
        assert not any("ignored" in note for note in source.notes)


def test_a_column_of_groups_is_asked_for_by_name(write_csv, write_parquet) -> None:
    columns = {"label": ["a", "b", "a"], "patient": [7, 8, 7]}
    for path in (write_csv(**columns), write_parquet(**columns)):
        assert open_source(path).splits["all"].groups is None
        assert open_source(path, group="Patient").splits["all"].groups.tolist() == [0, 1, 0]
        with pytest.raises(UserError, match=r"--group patent: (.|\n)*Did you mean 'patient'\?"):
            open_source(path, group="patent")


def test_twins_in_two_groups_are_refused(write_csv) -> None:
    path = write_csv(label=["a", "b"], group=["x", "y"])
    path.write_text(path.read_text() + "0.png,a,y\n")
    with pytest.raises(UserError, match=r"0\.png \(a / group 0 and a / group 1\)"):
        open_source(path)


def test_group_codes() -> None:
    assert group_codes(["x", None, " x", "", "1", 1, "0"]).tolist() == [0, 1, 0, 2, 3, 3, 4]


# ---- class_id


def test_class_numbers_order_text_labels(write_csv, write_parquet) -> None:
    columns = {"label": ["open", "closed", "open", "half"], "class_id": [0, 2, 0, 1]}
    for path in (write_csv(**columns), write_parquet(**columns)):
        source = open_source(path)
        assert source.classes == ("open", "half", "closed")
        assert source.splits["all"].targets.tolist() == [0, 2, 0, 1]
        assert f"{path.name}: the column label: classes in the order of class_id: open, half, closed" in (
            source.notes
        )


@pytest.mark.parametrize("numbers", [[0, 1, 1], [1, 2, 1], [0, 0, 0], ["0", "1", ""], [0, "x", 0]])
def test_class_numbers_that_are_not_one_to_one_are_ignored(write_csv, numbers: list[object]) -> None:
    source = open_source(write_csv(label=["b", "a", "b"], class_id=numbers))
    assert source.classes == ("a", "b")
    assert any("class_id is ignored: it does not number the 2 labels" in note for note in source.notes)


def test_class_numbers_beside_sets_are_said_to_be_ignored(write_csv) -> None:
    source = open_source(write_csv(label=["b", "a|b"], class_id=[0, 1]))
    assert any("class_id is ignored" in note for note in source.notes)


def test_missing_numbers_are_blank_and_words_for_missing_are_named(write_csv, write_parquet) -> None:
    missing = pa.array([float("nan") if n == 3 else float(n % 2) for n in range(8)])
    with pytest.raises(UserError, match=r"the column label is empty in 1 rows: row 4"):
        open_source(write_parquet(label=missing))
    source = open_source(write_csv(label=["a", "b", "NaN"] * 2))
    assert "2 rows have the label 'NaN', which is taken for a class" in " ".join(source.notes)
    assert group_codes([float("nan"), float("nan"), "a"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [{"x": 1}, b"cat", [["cat"]], [{"x": 1}]])
@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_what_is_no_label_is_refused(value: object, names: tuple[str, ...] | None) -> None:
    with pytest.raises(
        UserError,
        match=r"t: the column label holds (dict|bytes|list), such as (.|\n)*Expected: text, numbers",
    ):
        read_labels("t: the column label", [value, value], names)


def test_class_names_given_twice_are_refused() -> None:
    with pytest.raises(UserError, match="the class names hold 'a' twice"):
        read_labels("labels", [0, 1], ("a", "a"))
    with pytest.raises(UserError, match="the class names hold 'a' twice"):
        read_labels("labels", [[0], [1]], ("a", "b", "a"))


def test_a_struct_of_parquet_is_no_label(write_parquet) -> None:
    with pytest.raises(UserError, match=r"t.parquet: the column label holds dict, such as {'x': 0}"):
        open_source(write_parquet(label=[{"x": n % 2} for n in range(6)]))


def test_a_column_that_comes_twice_is_refused(write_csv) -> None:
    path = write_csv(label=["a", "b"] * 3, other=["b", "a"] * 3)
    path.write_text(path.read_text().replace("other", "Label"))
    with pytest.raises(UserError, match=r"t.csv has several columns called label: label, Label"):
        open_source(path)
    path.write_text("path,label,x,x\n" + "".join(f"{n}.png,{'ab'[n % 2]},1,2\n" for n in range(6)))
    assert open_source(path).classes == ("a", "b"), "columns that nobody reads may be called anything"


def test_a_column_of_groups_that_only_some_files_have_is_not_used(write_parquet) -> None:
    grouped = {"label": ["a", "b", "a"], "group": ["p", "p", "q"]}
    write_parquet(name="train.parquet", **grouped)
    root = write_parquet(name="test.parquet", label=["a", "b", "a"]).parent
    for _ in range(2):
        source = open_source(root)
        assert all(samples.groups is None for samples in source.splits.values())
        assert "the column group is not used: only 1 of 2 files have it" in " ".join(source.notes)
        write_parquet(name="train.parquet", label=["a", "b", "a"])
        write_parquet(name="test.parquet", **grouped)
