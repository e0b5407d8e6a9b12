"""`init` writes a YAML that parses as it is and says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

import warmstart as ws
from warmstart.config.io import load
from warmstart.errors import UserError


def test_the_written_yaml_loads_and_names_the_model(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(small_run.parent / "data")
    target = ws.init(data, str(small_run), str(tmp_path / "start.yaml"))
    loaded = load({}, target)
    assert loaded.config.data.path == data
    assert loaded.config.model.weights == str(small_run)
    assert loaded.config.model.name == "builtin:fashion_cnn"
    assert "#   lr" not in Path(target).read_text() and "  lr: 0.001" in Path(target).read_text()
    with pytest.raises(UserError, match="exists already"):
        ws.init(data, str(small_run), target)


def test_without_weights_a_small_pretrained_backbone_is_proposed(small_run: Path, tmp_path: Path) -> None:
    target = ws.init(str(small_run.parent / "data"), output=str(tmp_path / "start.yaml"))
    assert load({}, target).config.model.name == "timm:mobilenetv3_small_100"


def test_a_tilde_in_the_path_is_the_home_folder(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(small_run.parent))
    target = ws.init("~/data", str(small_run), str(tmp_path / "start.yaml"))
    assert load({}, target).config.data.path == "~/data"
