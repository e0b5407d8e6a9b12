from __future__ import annotations

import pytest

from warmstart.run import layout


@pytest.mark.parametrize("step", [0, 7, 99_999_999, 123_456_789_012])
def test_names_of_checkpoints_there_and_back(step):
    assert layout.checkpoint_step(layout.checkpoint_name(step)) == step


def test_names_sort_like_their_steps():
    names = [layout.checkpoint_name(step) for step in (0, 9, 10, 1000)]
    assert names == sorted(names)


@pytest.mark.parametrize(
    "name", ["", "LAST", "step_", "step_x", ".step_00000001.tmp", "step_1", "step_0000001", "step_-1"]
)
def test_what_is_no_checkpoint(name):
    assert layout.checkpoint_step(name) is None


def test_a_folder_is_a_run_when_it_is_complete(tmp_path):
    assert not layout.is_run(tmp_path)
    (tmp_path / layout.CONFIG).touch()
    assert not layout.is_run(tmp_path)
    (tmp_path / layout.RESOLVED).touch()
    assert layout.is_run(tmp_path)
    assert not layout.is_run(tmp_path / "nowhere")


def test_predictions_are_named_by_split_and_step():
    assert layout.predictions_name("test", 12) == "test@12.parquet"
