"""The demo tells its story, and the story is true on one seed too."""

from __future__ import annotations

from pathlib import Path

from warmstart.demo import demo


def test_demo_tells_what_fine_tuning_gains_and_costs(tmp_path: Path) -> None:
    story = demo(str(tmp_path / "demo"), seeds=1)
    told = {label: values[0] for label, values in story.cases}
    assert told["trained on A, tested on A"] > 0.95
    assert told["trained on A, tested on B"] < told["fine-tuned on B, tested on B"]
    assert told["B from scratch, tested on B"] < told["fine-tuned on B, tested on B"]
    assert told["fine-tuned on B, tested on A"] < told["trained on A, tested on A"]
    assert Path(story.picture).stat().st_size > 10_000
    assert "warmstart finetune --weights YOUR_CHECKPOINT" in story.text()
