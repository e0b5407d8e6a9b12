"""Histories of five other programs, in the forms in which these write them."""

from __future__ import annotations

import csv
import json

import pytest

from warmstart.analysis.diagnose.foreign import read_foreign
from warmstart.analysis.diagnose.rules import diagnose_history
from warmstart.errors import UserError

# Seed 002's story in ten epochs: val falls after its best while the training goes on.
VAL_LOSS = [1.0, 0.8, 0.7, 0.68, 0.75, 0.85, 0.95, 1.05, 1.15, 1.25]
TRAIN_LOSS = [1.1, 0.8, 0.6, 0.45, 0.35, 0.27, 0.2, 0.15, 0.12, 0.1]
SCORE = [0.4, 0.5, 0.6, 0.62, 0.6, 0.59, 0.58, 0.57, 0.56, 0.55]
RATES = [8e-4] * 10


def write_json(folder, name, content):
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder / name


def write_csv(folder, name, header, rows):
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder / name


def ce7454(folder):
    columns = {"train_loss": TRAIN_LOSS, "train_f_score": SCORE, "val_loss": VAL_LOSS, "val_f_score": SCORE}
    return write_json(folder, "history.json", columns | {"val_accuracy": SCORE, "lr": RATES})


def ocec(folder):
    rows = [
        {
            "epoch": n + 1,
            "lr": RATES[n],
            "train": {"loss": TRAIN_LOSS[n], "accuracy": 0.9, "f1": 0.9},
            "val": {"loss": VAL_LOSS[n], "accuracy": SCORE[n], "f1": SCORE[n]},
        }
        for n in range(10)
    ]
    return write_json(folder, "history.json", rows)


def timm(folder):
    header = ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"]
    rows = [[n, TRAIN_LOSS[n], VAL_LOSS[n], 100 * SCORE[n], 99.0, RATES[n]] for n in range(10)]
    return write_csv(folder, "summary.csv", header, rows)


def hugging_face(folder):
    rows = []
    for n in range(10):
        step = 50 * (n + 1)
        rows.append({"epoch": n + 1.0, "step": step, "loss": TRAIN_LOSS[n], "learning_rate": RATES[n]})
        rows.append({"epoch": n + 1.0, "step": step, "eval_loss": VAL_LOSS[n], "eval_accuracy": SCORE[n]})
    rows.append({"epoch": 10.0, "step": 500, "train_loss": 0.6, "train_runtime": 9.0})  # the mean of all
    return write_json(folder, "trainer_state.json", {"log_history": rows, "max_steps": 500})


def lightning(folder):
    header = ["epoch", "lr-AdamW", "step", "train_loss_epoch", "train_loss_step", "val_acc", "val_loss"]
    rows = []
    for n in range(10):
        step = 50 * (n + 1) - 1
        rows.append([n, RATES[n], step, "", "", "", ""])
        rows.append([n, "", step, "", TRAIN_LOSS[n], "", ""])
        rows.append([n, "", step, "", "", SCORE[n], VAL_LOSS[n]])
        rows.append([n, "", step, TRAIN_LOSS[n], "", "", ""])
    return write_csv(folder, "metrics.csv", header, rows)


FORMS = {
    "ce7454": (ce7454, "fscore"),
    "OCEC": (ocec, "f1"),
    "timm": (timm, "accuracy"),
    "Hugging Face": (hugging_face, "accuracy"),
    "Lightning": (lightning, "accuracy"),
}


@pytest.mark.parametrize("program", FORMS)
@pytest.mark.parametrize("by", ["file", "folder"])
def test_the_same_story_in_every_form(program, by, tmp_path):
    write, metric = FORMS[program]
    file = write(tmp_path)
    history = read_foreign(file if by == "file" else tmp_path)
    assert (history.program, history.metric) == (program, metric)
    assert history.of_val(metric).tolist() == pytest.approx(SCORE)
    assert history.of_val("loss").tolist() == VAL_LOSS
    assert [v.epoch for v in history.validations] == list(range(1, 11))
    assert [loss for _, loss in history.means] == TRAIN_LOSS
    assert history.peak_rate == 8e-4
    assert history.best is not None and history.best.epoch == 4


@pytest.mark.parametrize("program", FORMS)
def test_what_can_be_said_is_said_and_the_rest_named(program, tmp_path):
    found = diagnose_history(read_foreign(FORMS[program][0](tmp_path)))
    assert found.findings[0].id == "overfitting"
    assert found.findings[0].since == 4
    left_out = dict(found.left_out)
    assert {"head_frozen", "leakage", "imbalance", "label_noise"} <= set(left_out)
    assert f"read as {program}'s" in found.text()


def test_damaged_and_empty_cells_are_left_out(tmp_path):
    file = timm(tmp_path)
    file.write_text(file.read_text(encoding="utf-8") + "10,0.1\n", encoding="utf-8")
    assert read_foreign(file).num_damaged == 1
    rows = [
        {"epoch": 1, "val": {"loss": float("nan"), "f1": 0.5}},
        {"epoch": 2, "val": {"loss": 0.4, "f1": 0.6}},
    ]
    history = read_foreign(write_json(tmp_path, "history.json", rows))
    assert [set(v.val) for v in history.validations] == [{"f1"}, {"loss", "f1"}]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"a": 1}', '[{"epoch": 1}]', "3"])
def test_no_history_is_an_error_that_says_what_is_read(content, tmp_path):
    (tmp_path / "history.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"trainer_state.json \(Hugging Face\)"):
        read_foreign(tmp_path / "history.json")


def test_a_folder_without_a_history(tmp_path):
    with pytest.raises(UserError, match="is no run and no history"):
        read_foreign(tmp_path)
