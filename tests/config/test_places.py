from __future__ import annotations

from pathlib import Path

import pytest

from warmstart.config.io import load
from warmstart.config.places import absolute, is_path, short_name, split_place
from warmstart.errors import UserError


def test_paths_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_path("data/x") and is_path("C:\\data") and not is_path("torchvision:MNIST")
    assert split_place("torchvision:EMNIST/letters@~/a@b") == ("EMNIST/letters", "~/a@b")
    assert split_place("torchvision:MNIST") == split_place("torchvision:MNIST@") == ("MNIST", None)
    assert absolute("data/x") == str(tmp_path / "data" / "x")
    assert absolute("torchvision:MNIST") == "torchvision:MNIST"
    assert absolute("torchvision:MNIST@sets") == f"torchvision:MNIST@{tmp_path / 'sets'}"
    assert absolute("torchvision:MNIST@~") == f"torchvision:MNIST@{Path.home().resolve()}"
    assert [short_name(place) for place in ("a/b/", "torchvision:EMNIST/letters@x/y", "memory:00")] == [
        "b",
        "EMNIST-letters",
        "arrays",
    ]


def test_download_needs_something_to_fetch(tmp_path):
    with pytest.raises(UserError, match=r"--download: .* is nothing that could be fetched"):
        load({"data": str(tmp_path), "download": True, "model": "builtin:fashion_cnn"})
    load({"data": "torchvision:MNIST", "download": True, "model": "builtin:fashion_cnn"})


def test_a_tilde_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/photos") == str(tmp_path.resolve() / "photos")
