"""`compare A B`: from files alone, without torch where answers are kept; measured where they are not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import warmstart as ws
from warmstart.analysis.compare import files
from warmstart.analysis.compare.answers import Answers
from warmstart.analysis.compare.models import compare_models
from warmstart.analysis.compare.require import parse
from warmstart.analysis.compare.sides import Side
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import layout, writer
from warmstart.verbs.looking import compare

TARGETS = np.arange(200) % 3
BEFORE, AFTER = np.arange(200) < 140, np.arange(200) < 160


@pytest.fixture
def two(write_run) -> list[str]:
    slow, quick = (0.5, 0.6, 0.7), (0.5, 0.8)
    return [str(write_run("a", BEFORE, TARGETS, slow)), str(write_run("b", AFTER, TARGETS, quick))]


def test_the_verdict_comes_first_and_everything_is_there(two):
    found = compare(two)
    assert found.direction == 1 and found.verdict == "B is better than A on test"
    text = found.text()
    assert text.startswith(
        "B is better than A on test: accuracy 0.7000 -> 0.8000, +0.1000 (95 % paired interval"
    )
    assert "20 fixed, 0 broken" in text and "for this comparison only" in text
    told = found.to_json()
    json.dumps(told, allow_nan=False)
    one, other = told["histories"]
    assert (one["steps_to_other"], other["steps_to_other"]) == (None, 8)
    assert (one["best"], other["best_step"], one["num_parameters"], one["num_trained"]) == (0.7, 8, 100, 10)
    assert other["macs"] == 2_500_000
    line = next(line for line in text.splitlines() if "million MACs per image" in line)
    assert line.split()[-2:] == ["2.5", "2.5"]
    assert other["seconds"] == 12.5 and other["start_loss"] == 0.5 and other["bytes_of_weights"] == 1000
    assert compare(two[::-1]).direction == -1
    assert compare(two).looks.num_chances == 1  # the same question three times


def test_too_few_samples_say_how_many_would_do(write_run):
    few = np.arange(40)
    runs = [str(write_run(n, few < num, few % 3)) for n, num in (("a", 28), ("b", 32))]
    found = compare(runs)
    assert found.direction == 0 and found.enough is not None and found.enough > 40
    assert f"cannot be told with 40 samples (about {found.enough} would do" in found.text()
    same = compare([runs[0], runs[0]])
    assert "none came out better or worse" in same.verdict and same.enough is None


def test_requirements_decide_the_exit_code(two, capsys):
    assert main(["compare", *two, "--require", "f1 not worse; no class -2pt"]) == 0
    assert main(["compare", *two[::-1], "--require", "f1 not worse; no class -2pt"]) == 1
    assert "FAILS: f1 not worse" in capsys.readouterr().out
    assert main(["compare", *two, "--require", "f2 better"]) == 2
    assert "no metric 'f2'" in capsys.readouterr().err
    assert main(["compare", two[0]]) == 2
    assert main(["compare", *two, "--output-dir", str(Path(two[0]).parent)]) == 2


def test_changed_data_are_compared_on_what_is_the_same(write_run):
    data = {"path": "x", "classes": ["ant", "bee", "cat"], "sizes": {"test": 150}, "fingerprint": "f1"}
    one = write_run("a", BEFORE, TARGETS)
    other = write_run("b", AFTER[50:], TARGETS[50:], ids=[f"{n:05}" for n in range(50, 200)], data=data)
    found = compare([str(one), str(other)])
    assert (found.num_samples, found.num_left_out, found.test.fixed) == (150, 50, 20)
    assert any("have changed between the runs" in note for note in found.notes)
    assert any("50 samples" in note for note in found.notes)


def test_samples_that_one_was_trained_on_are_told(two):
    rows = "".join(f"{n:05},{'train' if n < 7 else 'test'}\n" for n in range(200))
    (Path(two[1]) / layout.SPLITS).write_text(f"id,split\n{rows}")
    assert any("B was trained on 7 of these samples" in note for note in compare(two).notes)


def test_kept_answers_need_no_torch_and_a_hundred_runs_no_second(write_run):
    """One process: two models, and a table of 100 runs of 1,000 rows; then what was imported on the way."""
    two = [str(write_run(name, right, TARGETS)) for name, right in (("a", BEFORE), ("b", AFTER))]
    rows = "".join(
        json.dumps(
            {"step": s, "epoch": s / 10, "split": split, "accuracy": 0.5 + s / 2e4, "loss": 0.5, "f1": 0.5}
        )
        + "\n"
        for s in range(500)
        for split in ("val", "train")
    )
    (Path(two[0]) / layout.EVALS).write_text(rows)
    many = [two[0]]
    for number in range(99):
        copy = Path(two[0]).with_name(f"run-{number:02}")
        shutil.copytree(two[0], copy)
        many.append(str(copy))
    code = (
        "import sys, time; from warmstart.cli import main\n"
        f"codes = [main(['compare', *{two!r}])]\n"
        "start = time.process_time()\n"
        f"codes.append(main(['compare', *{many!r}]))\n"
        "seconds = time.process_time() - start\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'sklearn', 'tensorboard', 'cv2'}\n"
        "print('RESULT', codes, sorted(heavy & set(sys.modules)), round(seconds, 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result = done.stdout.strip().split("\n")[-1]
    assert result.startswith("RESULT [0, 0] []"), done.stderr
    print(result)  # seconds: bench, not tests


def test_what_is_not_kept_is_measured_and_kept_and_files_on_the_data_of_the_run(small_run, tmp_path):
    copy = Path(shutil.copytree(small_run, tmp_path / "runs" / "run"))
    shutil.rmtree(copy / layout.EVALUATIONS)
    best = ws.compare([f"{copy}@0", str(copy)], output_dir=str(tmp_path / "out"))
    kept = read_predictions(next((copy / layout.EVALUATIONS).glob("test@*/predictions.parquet")))
    start = read_predictions(copy / layout.PREDICTIONS / "test@0.parquet")
    first, second = ((p.scores.argmax(1) == p.targets).mean() for p in (start, kept))
    assert (best.main.first, best.main.second) == pytest.approx((first, second))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "comparison.json",
        "comparison.txt",
        "samples.csv",
        "metrics.png",
        "classes.png",
        "fixed.png",
    } <= files
    rows = (tmp_path / "out" / "samples.csv").read_text().splitlines()
    assert len(rows) == 1 + best.test.fixed + best.test.broken
    assert "<img" in best._repr_html_()

    step = Path(reader_file(copy))
    alone = tmp_path / "alone.safetensors"
    shutil.copy(step, alone)
    again = ws.compare([str(alone), str(copy)])
    assert again.test.fixed == again.test.broken == 0 and again.num_samples == best.num_samples
    with pytest.raises(UserError, match="no samples to compare on"):
        ws.compare([str(alone), str(alone)])
    root = small_run.parent / "data"
    on_data = ws.compare([str(alone), str(copy)], data=str(root))
    assert on_data.num_samples == best.num_samples and on_data.test.p == 1
    assert on_data.looks.num_pairs == again.looks.num_pairs == 2  # the same data, however they were named
    everything = ws.compare([str(alone), str(copy)], data=str(root), split="all")
    assert everything.num_samples == 60 and everything.split == "train,val,test"


def reader_file(run: Path) -> Path:
    from warmstart.run.reader import model_file

    return model_file(str(run))[2]


def test_sets_and_masks_are_compared_in_their_own_words(tmp_path):
    rng = np.random.default_rng(0)
    ids = tuple(f"{n:03}" for n in range(60))
    sets = (rng.random((60, 4)) < 0.4).astype(np.uint8)
    scores = [
        np.clip(sets * 0.4 + 0.3 + noise * rng.normal(size=sets.shape), 0.01, 0.99) for noise in (0.3, 0.1)
    ]
    hits = rng.integers(10, 40, (60, 3))
    counts = [
        np.concatenate([h, np.full((60, 3), 50), np.full((60, 3), 50), hits[:, :1], h[:, :1] * 0 + 150], 1)
        for h in (hits, hits + 5)
    ]
    for kind, models, targets, words in (
        ("multi-label", scores, sets, "images with fewer wrong labels"),
        ("segmentation", counts, None, "images with a higher mIoU"),
    ):
        classes = tuple("abcd"[: 4 if kind == "multi-label" else 3])
        pair = [
            Answers(Side(name), kind, classes, ids, targets, m.astype(np.float32))
            for name, m in zip("ab", models, strict=True)
        ]
        found = compare_models(pair, "test", "f", parse("no class worse"))
        assert found.direction == 1 and found.passed and words in found.text()
        json.dumps(found.to_json(), allow_nan=False)
        kept = files.write(found, str(tmp_path / kind))
        rows = (tmp_path / kind / "samples.csv").read_text().splitlines()
        assert len(rows) == 1 + found.test.fixed + found.test.broken
        assert [path.name for path in kept.pictures] == ["classes.png", "metrics.png"]  # no images are named


def test_several_tasks_want_a_name_and_retained_data_have_their_own_answers(write_run):
    run = write_run("a", BEFORE, TARGETS)
    (run / layout.PREDICTIONS / "retain@8.parquet").write_bytes(
        (run / layout.PREDICTIONS / "test@8.parquet").read_bytes()
    )
    for step, value in ((0, 0.9), (8, 0.7)):
        writer.append_row(run / layout.EVALS, {"step": step, "split": "retain", "accuracy": value})
    other = write_run("b", AFTER, TARGETS)
    found = compare([str(run), str(other)])
    assert "retained data, A: accuracy 0.9000 -> 0.7000" in found.text()
    assert compare([str(run), str(run)], split="retain").num_samples == 200
    with pytest.raises(UserError, match="kept no answers on the data of --retain"):
        compare([str(run), str(other)], split="retain")
    tasks = [{"name": "shapes", "kind": "labels"}]
    several = write_run("t", BEFORE, TARGETS, tasks=tasks)
    with pytest.raises(UserError, match="has several tasks"):
        compare([str(run), str(several)])


def test_one_of_several_tasks_is_compared_by_its_own_rows_and_answers(write_run):
    tasks = [{"name": "shapes", "kind": "labels", "source": None, "settings": {}}]
    runs = [
        write_run(n, r, TARGETS, tasks=tasks, select_by="combined") for n, r in (("a", BEFORE), ("b", AFTER))
    ]
    for run, value in zip(runs, (0.6, 0.7), strict=True):
        folder = run / layout.PREDICTIONS
        (folder / "test@8.parquet").rename(folder / "shapes.test@8.parquet")
        for split in ("val", "train"):
            row = {"step": 8, "epoch": 2.0, "split": split, "task": "shapes", "accuracy": value}
            writer.append_row(run / layout.EVALS, row)
    found = compare([str(run) for run in runs], task="shapes")
    assert found.direction == 1 and found.histories[1].best == 0.7
    rows = compare([str(run) for run in (*runs, runs[0])], task="shapes").rows
    assert [row["best"] for row in rows] == [0.7, 0.6, 0.6]
