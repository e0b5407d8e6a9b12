from __future__ import annotations

import pytest

from warmstart.run.tensorboard import ScalarWriter


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = ScalarWriter(tmp_path / "tb")
    for step in range(3):
        writer.add("loss", 1.0 / (step + 1), step)
    writer.add("learning_rate/group_0", 1e-3, 2)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["learning_rate/group_0", "loss"]
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([1, 1 / 2, 1 / 3])
