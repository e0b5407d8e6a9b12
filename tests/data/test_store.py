from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart.data import cache_folder, store
from warmstart.data.batches import View, deliver
from warmstart.data.samples import Samples
from warmstart.data.sources import open_source
from warmstart.data.store import StoredPixels, keep
from warmstart.data.store_plan import StorePlan
from warmstart.errors import UserError
from warmstart.records import Preprocessing

SIZE = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)  # resized to cover 37 x 37


def plan(folder: Path, mode: str = "disk") -> StorePlan:
    return StorePlan(mode, folder, SIZE.resize_size, 3)


@pytest.fixture
def splits(write_folders) -> dict[str, Samples]:
    """Pictures larger than the store size, wide and high, and a few smaller ones."""
    root = write_folders({"a": 5, "b": 6}, size=(50, 80))
    Image.fromarray(np.full((20, 25, 3), 90, np.uint8)).save(root / "a" / "small.png")
    Image.fromarray(np.full((90, 40), 90, np.uint8)).save(root / "b" / "grey.png")
    return open_source(root).splits


def images_of(samples: Samples) -> list[np.ndarray]:
    return [samples.pixels.read(index) for index in range(len(samples))]


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_what_is_delivered_is_equal_to_the_bit(splits: dict[str, Samples], tmp_path: Path, mode: str) -> None:
    kept = keep(splits, plan(tmp_path, mode), 0)
    assert kept is not None
    samples, result = kept["all"]
    view = View(SIZE)
    (stored,), (streamed,) = (deliver(s, [np.arange(len(s))], view) for s in (samples, splits["all"]))
    assert (stored.images == streamed.images).all() and (stored.targets == streamed.targets).all()
    assert [samples.pixels.shape(i) for i in range(len(samples))] == [
        splits["all"].pixels.shape(i) for i in range(len(samples))
    ]
    assert (result.heights == [samples.pixels.shape(i)[0] for i in range(len(samples))]).all()
    assert any(tmp_path.rglob("*.pixels")) == (mode == "disk")
    assert isinstance(samples.pixels, StoredPixels)
    is_mapped = isinstance(samples.pixels.shards[0].pixels.base, np.memmap)
    assert is_mapped == (mode == "disk"), "the run that builds a store must not hold it in memory besides"


def test_nothing_is_cropped_and_nothing_enlarged(splits: dict[str, Samples], tmp_path: Path) -> None:
    kept = keep(splits, plan(tmp_path), 0)
    assert kept is not None
    sizes = {
        name: image.shape for name, image in zip(splits["all"].ids, images_of(kept["all"][0]), strict=True)
    }
    assert sizes["a/small.png"] == (20, 25, 3) and sizes["b/grey.png"] == (83, 37, 3)
    assert sizes[splits["all"].ids[0]] == (37, 59, 3)


def test_a_warm_store_decodes_nothing(
    splits: dict[str, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = keep(splits, plan(tmp_path), 2)
    monkeypatch.setattr("warmstart.data.samples.decode", lambda path: pytest.fail("decoded again"))
    for mode in ("disk", "auto", "warm"):
        again = keep(splits, plan(tmp_path, mode), 0)
        assert first is not None and again is not None
        pairs = zip(images_of(first["all"][0]), images_of(again["all"][0]), strict=True)
        assert all((a == b).all() for a, b in pairs)
        assert isinstance(again["all"][0].pixels, StoredPixels)


def test_warm_builds_nothing_and_off_keeps_nothing(splits: dict[str, Samples], tmp_path: Path) -> None:
    assert keep(splits, plan(tmp_path, "warm"), 0) is None and keep(splits, plan(tmp_path, "off"), 0) is None
    assert not any(tmp_path.rglob("*.pixels"))


def test_a_changed_image_is_noticed(write_folders, tmp_path: Path) -> None:
    root = write_folders({"a": 3, "b": 3}, size=(50, 60))
    keep(open_source(root).splits, plan(tmp_path), 0)
    changed = sorted((root / "b").iterdir())[1]
    Image.fromarray(np.full((50, 60, 3), 7, np.uint8)).save(changed)
    kept = keep(open_source(root).splits, plan(tmp_path), 0)
    assert kept is not None
    image = kept["all"][0].pixels.read(kept["all"][0].ids.index(f"b/{changed.name}"))
    assert (image == 7).all()


def test_other_parameters_are_another_store(splits: dict[str, Samples], tmp_path: Path) -> None:
    keep(splits, plan(tmp_path), 0)
    kept = keep(splits, StorePlan("disk", tmp_path, (24, 24), 1), 0)
    assert kept is not None
    assert kept["all"][0].pixels.read(0).shape == (24, 38, 1)
    assert len(list(tmp_path.rglob("*.pixels"))) == 2


def test_corrupt_images_are_remembered(write_folders, tmp_path: Path) -> None:
    root = write_folders({"a": 3, "b": 3}, size=(50, 60))
    (root / "a" / "bad.png").write_bytes(b"no image")
    for _ in range(2):
        kept = keep(open_source(root).splits, plan(tmp_path), 0)
        assert kept is not None
        samples, result = kept["all"]
        assert result.corrupt == (("a/bad.png", "not an image in any known format"),)
        assert len(result.good) == 6 and samples.ids.index("a/bad.png") not in result.good


@pytest.mark.parametrize("how", ["cut", "pixel", "table", "header", "version", "empty"])
def test_a_damaged_file_is_noticed(
    splits: dict[str, Samples], tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = keep(splits, plan(tmp_path), 0)
    (path,) = tmp_path.rglob("*.pixels")
    data = bytearray(path.read_bytes())
    place = {"pixel": -5, "table": data.index(b"\n", 30) + 40, "header": 25, "version": 17}.get(how, 0)
    data[place] ^= 0xFF
    path.write_bytes({"cut": data[:-100], "empty": b""}.get(how, data))
    with caplog.at_level(logging.WARNING, "warmstart"):
        after = keep(splits, plan(tmp_path), 0)
        assert before is not None and after is not None
        view = View(SIZE)
        (a,), (b,) = (deliver(k, [np.arange(len(k))], view) for k in (after["all"][0], splits["all"]))
    assert (a.images == b.images).all()
    assert "damaged" in caplog.text


def test_a_killed_build_goes_on(write_folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = open_source(write_folders({"a": 20, "b": 20}, size=(40, 40))).splits
    monkeypatch.setattr("warmstart.data.listing._IMAGES_PER_SHARD", 8)
    kept = keep(splits, plan(tmp_path), 0)
    files = sorted(tmp_path.rglob("*.pixels"))
    assert kept is not None and len(files) == 8
    for path in files[:3]:
        path.unlink()
    decoded = []
    real = store.shrink
    monkeypatch.setattr(store, "shrink", lambda image, p: decoded.append(1) or real(image, p))
    again = keep(splits, plan(tmp_path), 0)
    assert again is not None and 0 < len(decoded) < 40
    pairs = zip(images_of(kept["all"][0]), images_of(again["all"][0]), strict=True)
    assert all((a == b).all() for a, b in pairs) and sorted(tmp_path.rglob("*.pixels")) == files


def test_two_processes_may_build_at_once(write_folders, tmp_path: Path) -> None:
    root = write_folders({"a": 30, "b": 30}, size=(60, 60))
    script = (
        "import sys, hashlib; from pathlib import Path; from warmstart.data.store import keep;"
        "from warmstart.data.store_plan import StorePlan;"
        "from warmstart.data.sources import open_source;"
        "s, _ = keep(open_source(sys.argv[1]).splits, StorePlan('disk', Path(sys.argv[2]), (37, 37), 3), 0)['all'];"
        "print(hashlib.sha256(b''.join(s.pixels.read(i).tobytes() for i in range(len(s)))).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(root), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in both}) == 1
    assert all(process.returncode == 0 for process in both)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_means_streaming_and_is_said(
    splits: dict[str, Samples],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_shard", write)
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert keep(splits, plan(tmp_path, "auto"), 0) is None
    assert "No space left on device" in caplog.text and "decoded in every epoch" in caplog.text


def test_a_folder_that_cannot_be_made(splits: dict[str, Samples], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="--cache disk needs"):
        keep(splits, plan(tmp_path / "file" / "cache"), 0)
    kept = keep(splits, plan(tmp_path / "file" / "cache", "auto"), 0)
    assert kept is not None, "auto takes memory instead"
    assert kept["all"][0].pixels.read(0).shape == (37, 59, 3)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("pixels/old.pixels", "pixels/mine.pixels", "features/new.npy")
    others = ("data/MNIST/raw", "env/lib/torch.npy", "pixels/notes.txt", "features/deep/x.npy", "old.pixels")
    for number, name in enumerate((*others, *names)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (number, number))
    old, mine, new = (tmp_path / name for name in names)
    monkeypatch.setattr(cache_folder, "room", lambda folder: 3500)
    assert cache_folder.make_room(tmp_path, 500, {mine.name}) and old.exists()
    assert cache_folder.make_room(tmp_path, 1500, {mine.name}) and not old.exists() and new.exists()
    assert not cache_folder.make_room(tmp_path, 3000, {mine.name}) and mine.exists() and not new.exists()
    assert all((tmp_path / name).exists() for name in others), "what is not ours is never removed"


def test_a_store_that_would_not_fit_is_refused_or_left_out(
    splits: dict[str, Samples],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store, "room", lambda folder: 1000)
    monkeypatch.setattr(store, "memory_room", lambda: 0)
    with pytest.raises(UserError, match="has room for 0 MB"):
        keep(splits, plan(tmp_path), 0)
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert keep(splits, plan(tmp_path, "auto"), 0) is None
    assert "decoded in every epoch: 13 images" in caplog.text
