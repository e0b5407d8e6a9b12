"""How many trials were seen side by side: of each task, and never of episodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from warmstart.config import io
from warmstart.engine import train
from warmstart.methods.trials.looks import count_looks
from warmstart.run import layout

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_task_is_counted_and_episodes_are_not(small_settings: dict[str, Any], tmp_path: Path) -> None:
    one = train.finetune(io.load({**small_settings, "epochs": 1, "output_dir": str(tmp_path / "0")}))
    runs = [one, *(shutil.copytree(one, tmp_path / name) for name in "12")]
    resolved = json.loads((one / layout.RESOLVED).read_text())
    data = resolved["data"]

    def counted(**changed: Any) -> dict[str, int]:
        for run in runs:
            (run / layout.RESOLVED).write_text(json.dumps(resolved | changed))
        count_looks([*runs, tmp_path / "none"])
        file = tmp_path / layout.LOOKS
        found = json.loads(file.read_text())["data"] if file.exists() else {}
        file.unlink(missing_ok=True)
        return {fingerprint: splits["val"]["largest_table"] for fingerprint, splits in found.items()}

    assert counted() == {data["fingerprint"]: 3}
    assert counted(episodes={"way": 2}) == {}
    tasks = [{"name": "f", "source": None}, {"name": "g", "source": 0}]
    both = counted(tasks=tasks, sources=[{**data, "fingerprint": "of g"}])
    assert both == {data["fingerprint"]: 3, "of g": 3}
    runs = runs[:1]
    assert counted() == {}, "one was compared with nobody"
