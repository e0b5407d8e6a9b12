"""Settings files that commands propose."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from warmstart.config.schema import Config
from warmstart.config.settings_file import check_new_file, comment, settings_lines
from warmstart.errors import UserError


def test_chosen_settings_stand_below_their_reasons() -> None:
    config = Config.model_validate({"data": {"batch_size": 8}, "optim": {"lr": 3e-5}})
    reason = "a rate " * 30
    lines = settings_lines(config, {"optim.lr": reason, "data.batch_size": ""})
    assert lines[:2] == ["data:", "  batch_size: 8"] and lines[2] == "optim:"
    assert lines[3:-1] == comment(reason, "  # ") and all(len(line) <= 116 for line in lines)
    assert Config.model_validate(yaml.safe_load("\n".join(lines))) == config


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "next.yaml").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"--write .* exists already"):
        check_new_file("--write", str(tmp_path / "next.yaml"))
    with pytest.raises(UserError, match=r"--to .* does not exist"):
        check_new_file("--to", str(tmp_path / "none" / "next.yaml"))
    check_new_file("--to", str(tmp_path / "new.yaml"))
