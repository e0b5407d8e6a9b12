"""plots.py: files appear, no warning is raised (they are errors here), and texts say what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from warmstart.analysis import figures, plots


@pytest.fixture
def texts(monkeypatch):
    """Every text of the last figure that was saved."""
    found: list[str] = []
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        found[:] = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def _matrix(num_classes: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, size=(num_classes, num_classes)) + 40 * np.eye(num_classes, dtype=np.int64)


def _is_picture(path) -> bool:
    with Image.open(path) as image:
        image.load()
        return (
            image.format == "PNG" and min(image.size) > 200 and len(image.convert("RGB").getcolors(10**7)) > 2
        )


@pytest.mark.parametrize("num_classes", [1, 2, 20, 21, 51, 301])
def test_confusion_matrices_of_all_sizes(num_classes, tmp_path, texts):
    matrix = _matrix(num_classes)
    matrix[0, 0] = 1234
    plots.plot_confusion(matrix, [f"name{i}" for i in range(num_classes)], tmp_path / "c.png")
    assert _is_picture(tmp_path / "c.png")
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]
    assert ("1234" in texts) == (num_classes <= 20)
    assert ("name0" in texts) == (num_classes <= 50)
    assert ("Most frequent confusions" in texts) == (num_classes > 50)
    accuracy = np.trace(matrix) / matrix.sum()
    assert f"{num_classes} classes, {matrix.sum()} samples, {accuracy:.1%} right" in texts


def test_confusions_are_listed_by_frequency(tmp_path, texts):
    matrix = 5 * np.eye(60, dtype=np.int64)
    matrix[7, 9], matrix[30, 2] = 3, 4
    plots.plot_confusion(matrix, [f"n{i}" for i in range(60)], tmp_path / "c.png")
    listed = [text for text in texts if "taken for" in text]
    assert listed == ["n30 (30)\n   taken for n2 (2)", "n7 (7)\n   taken for n9 (9)"]


def test_a_class_without_samples_is_said(tmp_path, texts):
    matrix = _matrix(3)
    matrix[1] = 0
    plots.plot_confusion(matrix, list("abc"), tmp_path / "c.png")
    assert any("(grey: no samples of 1)" in text for text in texts)
    plots.plot_confusion(np.zeros((2, 2), dtype=np.int64), list("ab"), tmp_path / "none.png")
    assert _is_picture(tmp_path / "none.png")


def test_the_largest_of_a_block_is_kept():
    shares = np.ma.masked_invalid(np.where(np.arange(25).reshape(5, 5) == 13, 0.7, 0.0))
    blocks = plots._largest_of_blocks(shares, 2)
    assert blocks.shape == (3, 3)
    assert blocks[1, 1] == 0.7
    assert blocks.sum() == 0.7


def test_names_that_no_font_draws_become_numbers(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(figures, "CJK_FONTS", ("No Such Font",))
    plots.plot_confusion(_matrix(3), ["猫", "$x^2$ \n\t", "dog"], tmp_path / "c.png")
    assert {"#0", "$x^2$   ", "dog"} <= set(texts)
    assert any("no installed font can draw" in text for text in texts)


def test_names_are_drawn_by_the_font_that_has_their_characters(tmp_path, texts, monkeypatch):
    """STIXGeneral comes with matplotlib and has a character that its base font lacks, as CJK fonts do."""
    candidates = [chr(c) for c in range(0x2000, 0x2FFF) if chr(c).isprintable()]
    has = figures._characters("STIXGeneral", set(candidates)) - figures._characters(
        "DejaVu Sans", set(candidates)
    )
    monkeypatch.setattr(figures, "CJK_FONTS", ("No Such Font", "STIXGeneral"))
    name = "x" + min(has)
    plots.plot_confusion(_matrix(3), [name, "猫", "dog"], tmp_path / "c.png")
    assert {name, "#1", "dog"} <= set(texts)


def test_long_names_lose_their_middle():
    (name,), fonts, note = figures.drawable(["abcdefghijklmnopqrstuvwxyz0123456789"], max_length=12)
    assert (name, fonts, note) == ("abcdefg…6789", ["DejaVu Sans"], "")


@pytest.mark.parametrize("num_samples", [1, 500])
def test_calibration(num_samples, tmp_path, texts):
    confidence = np.random.default_rng(0).random(num_samples)
    plots.plot_calibration(confidence, np.zeros(num_samples), tmp_path / "r.png")
    assert _is_picture(tmp_path / "r.png")
    mean = confidence.mean()
    assert f"Calibration error {mean:.3f}, on average {mean:.3f} overconfident" in texts


def _rows(epoch_type: type = float):
    train = [{"step": s, "epoch": epoch_type(s / 10), "loss": 1 / s, "lr": 0.1} for s in range(1, 41)]
    evals = [
        {"step": s, "epoch": s / 10, "split": split, "loss": 1.0, "accuracy": 0.5 + s / 100}
        for s in range(0, 41, 10)
        for split in ("val", "train")
    ]
    return train, evals


def test_training_marks_the_best_step(tmp_path, texts):
    train, evals = _rows()
    for row in evals:
        row["accuracy"] += row["step"] / 1000 if row["split"] == "train" else 0
    plots.plot_training(train, evals, tmp_path / "t.png", best_step=30)
    assert _is_picture(tmp_path / "t.png")
    title = "Best val accuracy 0.8 at step 30 (epoch 3)\ntrain less val: +0.030 there, +0.040 at the end"
    assert {title, "epoch", "learning rate", "loss"} <= set(texts)
    assert {"val", "train, running", "train, measured like val"} <= set(texts)


def test_training_by_whole_epochs_is_drawn_over_steps(tmp_path, texts):
    plots.plot_training(*_rows(int), tmp_path / "t.png", metric="loss", best_step=30)
    title = "Best val loss 1 at step 30\ntrain less val: +0.000 there, +0.000 at the end"
    assert {title, "step"} <= set(texts)
    assert "epoch" not in texts


@pytest.mark.parametrize("metric", ["accuracy", "ece"])
def test_training_that_has_hardly_begun(metric, tmp_path, texts):
    first = {"step": 0, "epoch": 0, "split": "val", "loss": float("nan"), "accuracy": 0.1}
    plots.plot_training([], [first], tmp_path / "t.png", metric=metric)
    assert _is_picture(tmp_path / "t.png")
    assert "learning rate" not in texts
    plots.plot_training([], [], tmp_path / "none.png")


def test_story(tmp_path, texts):
    cases = [("from nothing", [0.4, 0.5]), ("warm $tart$", [0.9])]
    plots.plot_story(cases, tmp_path / "s.png", "A title", "test accuracy")
    assert _is_picture(tmp_path / "s.png")
    assert {"from nothing", "warm $tart$", "A title", "test accuracy"} <= set(texts)
    assert {"  0.450 ± 0.071", "  0.900"} <= set(texts)


def test_figures_leave_no_global_style(tmp_path):
    from matplotlib import rcParams

    before = dict(rcParams)
    plots.plot_story([("a", [1.0])], tmp_path / "s.png")
    assert dict(rcParams) == before
