from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from warmstart.data import fetch
from warmstart.data import workers as workers_module
from warmstart.data.augment import Augment
from warmstart.data.batches import (
    View,
    deliver,
    evaluation_batches,
    training_batches,
)
from warmstart.data.decode import CorruptImage, centre_crop, cover
from warmstart.data.order import epoch_order, epoch_windows
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.data.sources import open_source
from warmstart.data.unreadable import Unreadable
from warmstart.errors import UserError
from warmstart.records import Preprocessing

GREY28 = Preprocessing((28, 28), (0.5,), (0.5,))


def array_samples(num: int = 10, size: tuple[int, int] = (28, 28)) -> Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (num, *size), dtype=np.uint8)
    return Samples(tuple(f"train/{i:05d}" for i in range(num)), np.arange(num) % 3, ArrayPixels(pixels))


def test_native_pixels_are_untouched():
    samples = array_samples()
    for crop_pct in (0.875, 1.0):
        preprocessing = Preprocessing((28, 28), (0.5,), (0.5,), crop_pct)
        for view in (View(preprocessing, True), View(preprocessing, True, Augment())):
            (batch,) = deliver(samples, [np.arange(10)], view)
            assert (batch.images[..., 0] == samples.pixels.array).all()


def test_native_images_of_another_size_are_resized_as_ever():
    samples = array_samples(size=(20, 20))
    with_flag, without = (next(evaluation_batches(samples, GREY28, native, 4, 0)) for native in (True, False))
    assert (with_flag.images == without.images).all()
    assert with_flag.images.shape == (4, 28, 28, 1)


@pytest.mark.parametrize("shape", [(20, 20), (23, 31), (40, 25), (5, 90), (200, 7), (34, 29)])
@pytest.mark.parametrize("crop_pct", [0.8, 0.875, 1.0])
def test_evaluation_is_the_centre_of_the_covering_centre(picture, shape, crop_pct):
    for size in ((24, 24), (23, 30), (16, 11)):
        preprocessing = Preprocessing(size, (0.5,) * 3, (0.5,) * 3, crop_pct)
        expected = centre_crop(cover(picture(*shape), preprocessing.resize_size), size)
        for view in (View(preprocessing), View(preprocessing, False, Augment())):
            found = view.finish([view.resize(picture(*shape))], np.zeros(1, np.uint64), 0)
            assert (found[0] == expected).all()


def test_evaluation_is_in_order_and_complete(write_folders):
    samples = open_source(write_folders({"a": 5, "b": 6}, size=(30, 50))).splits["all"]
    preprocessing = Preprocessing((16, 24), (0.5,) * 3, (0.5,) * 3)
    batches = list(evaluation_batches(samples, preprocessing, False, 4, 0))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(11))
    assert np.concatenate([batch.targets for batch in batches]).tolist() == samples.targets.tolist()
    assert (np.concatenate([batch.keys for batch in batches]) == samples.keys).all()
    assert batches[0].images.shape == (4, 16, 24, 3)
    assert batches[0].images.flags.c_contiguous


def test_a_repeated_image_is_augmented_differently_each_time():
    samples = array_samples(2)
    view = View(GREY28, True, Augment(rotation=30, crop_pad=0.2))
    (batch,) = deliver(samples, [np.array([0, 2, 4, 1])], view)  # image 0 three times, then image 1
    assert batch.indices.tolist() == [0, 0, 0, 1] and batch.targets.tolist() == [0, 0, 0, 1]
    assert len({image.tobytes() for image in batch.images[:3]}) == 3
    (alone,) = deliver(samples, [np.array([0])], view)
    assert (alone.images[0] == batch.images[0]).all()


def test_workers_and_batch_size_change_nothing(write_folders):
    samples = open_source(write_folders({"a": 9, "b": 8}, size=(40, 33))).splits["all"]
    view = View(Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3), False, Augment(20, 0.1, 0.2, 0.5, seed=3))
    order = epoch_order(len(samples), 3, 5)

    def pixels(batch_size: int, workers: int) -> np.ndarray:
        batches = list(training_batches(samples, view, epoch_windows(order, batch_size, 2), 5, workers))
        assert (np.concatenate([batch.indices for batch in batches]) == order).all()
        return np.concatenate([batch.images for batch in batches])

    expected = pixels(4, 0)
    assert expected.shape == (17, 16, 16, 3)
    for batch_size, workers in ((4, 1), (4, 3), (1, 2), (2, 0), (32, 5)):
        assert (pixels(batch_size, workers) == expected).all()


def test_a_limit_does_not_change_a_sample():
    samples = array_samples(30)
    view = View(GREY28, True, Augment(20, 0.1, seed=1))
    kept = np.array([3, 11, 29])
    (whole,) = deliver(samples, [np.arange(30)], view, epoch=2)
    (few,) = deliver(samples.subset(kept), [np.arange(3)], view, epoch=2)
    assert (few.images == whole.images[kept]).all()


def test_augmentation_off_equals_evaluation(write_folders):
    samples = open_source(write_folders({"a": 3, "b": 3}, size=(50, 41))).splits["all"]
    preprocessing = Preprocessing((24, 24), (0.5,), (0.5,))
    (plain,) = deliver(samples, [np.arange(6)], View(preprocessing, False, Augment()))
    (evaluated,) = evaluation_batches(samples, preprocessing, False, 6, 0)
    assert (plain.images == evaluated.images).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_broke_since_the_scan_is_named(write_folders, workers):
    root = write_folders({"a": 6, "b": 6})
    samples = open_source(root).splits["all"]
    (root / "b" / "4.png").unlink()
    before = threading.active_count()
    stream = evaluation_batches(samples, GREY28, False, 4, workers)
    assert len(next(stream)) == len(next(stream)) == 4
    with pytest.raises(UserError, match=r"b/4.png can no longer be read: file is missing"):
        next(stream)
    assert threading.active_count() == before


def test_threads_end_when_the_stream_is_closed():
    samples = array_samples(40)
    before = threading.active_count()
    stream = evaluation_batches(samples, GREY28, True, 4, 3)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_only_one_batch_is_made_ahead():
    taken = []

    def arrays():
        for number in range(5):
            taken.append(number)
            yield np.array([number])

    stream = deliver(array_samples(5), arrays(), View(GREY28, True), workers=2)
    next(stream)
    assert taken == [0, 1]
    stream.close()


# ---- files that fail while a run trains


class Failing(ArrayPixels):
    """Images of which some fail, each so many times, as a network's disk would."""

    def __init__(self, array: np.ndarray, failures: dict[int, int], error: Exception) -> None:
        super().__init__(array)
        object.__setattr__(self, "failures", failures)
        object.__setattr__(self, "error", error)

    def read(self, index: int) -> np.ndarray:
        if self.failures.get(index, 0) > 0:
            self.failures[index] -= 1
            raise self.error
        return super().read(index)


def failing(failures: dict[int, int], error: Exception) -> Samples:
    plain = array_samples()
    return Samples(plain.ids, plain.targets, Failing(plain.pixels.array, failures, error))


ERRORS = [OSError(5, "Input/output error"), CorruptImage("torn"), ValueError("odd"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_fails_once_is_read_again(workers, error, caplog):
    view = View(GREY28, True, Augment())
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        (batch,) = deliver(failing({3: 1, 7: 1}, error), [np.arange(10)], view, workers)
    (expected,) = deliver(array_samples(), [np.arange(10)], view)
    assert (batch.images == expected.images).all() and len(batch) == 10
    assert "train/00003 cannot be read" in caplog.text and "train/00007 cannot be read" in caplog.text


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_fails_twice_is_left_out_of_training_and_named(workers, error, caplog):
    unreadable = Unreadable(10, 0.2)
    view = View(GREY28, True, Augment(), unreadable=unreadable)
    order = np.array([5, 3, 9, 3, 7, 1])
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        batches = list(deliver(failing({3: 99}, error), [order, order[:2]], view, workers))
    expected = list(deliver(array_samples(), [order[[0, 2, 4, 5]], order[:1]], view))
    for batch, other in zip(batches, expected, strict=True):
        assert batch.indices.tolist() == other.indices.tolist()
        assert (batch.images == other.images).all() and (batch.keys == other.keys).all()
        assert (batch.targets == other.targets).all()
    assert list(unreadable.reasons) == ["train/00003"]
    assert caplog.text.count("train/00003 can no longer be read") == 1


def test_too_many_unreadable_files_end_the_run():
    view = View(GREY28, True, Augment(), unreadable=Unreadable(10, 0.1))
    with pytest.raises(UserError, match=r"2 training images can no longer be read: train/00003, train/00007"):
        list(deliver(failing({3: 9, 7: 9}, OSError("gone")), [np.arange(10)], view))


def test_an_evaluation_never_leaves_anything_out():
    for view in (View(GREY28, True), View(GREY28, True, Augment())):
        with pytest.raises(UserError, match=r"train/00003 can no longer be read: gone"):
            list(deliver(failing({3: 9}, OSError("gone")), [np.arange(10)], view))


class Hanging(ArrayPixels):
    """Reading image 8 hangs, so many times, until it is released."""

    def __init__(self, array: np.ndarray, times: int) -> None:
        super().__init__(array)
        self.left, self.release = times, threading.Event()

    def read(self, index: int) -> np.ndarray:
        if index == 8 and self.left > 0:
            self.left -= 1
            self.release.wait(20)
        return super().read(index)


@pytest.fixture
def hanging(monkeypatch):
    """Samples by how many times the image hangs; no thread is left behind."""
    monkeypatch.setattr(fetch, "_PATIENCE", 0.3)
    before, made = threading.active_count(), []

    def make(times: int) -> Samples:
        plain = array_samples()
        made.append(Hanging(plain.pixels.array, times))
        return Samples(plain.ids, plain.targets, made[-1])

    yield make
    for pixels in made:
        pixels.release.set()
    for _ in range(100):
        if threading.active_count() == before:
            return
        time.sleep(0.02)
    raise AssertionError("threads are left")


@pytest.mark.parametrize("workers", [1, 5])
def test_a_read_that_hangs_in_an_evaluation_is_told_with_its_file(hanging, caplog, workers):
    with caplog.at_level(logging.WARNING, logger="warmstart"), pytest.raises(UserError) as error:
        list(deliver(hanging(9), [np.arange(10)], View(GREY28, True), workers=workers))
    assert "reading hangs, for 0.6 s now, at train/00008" in str(error.value)
    assert "from reading train/00008: once more" in caplog.text


class Dead(ArrayPixels):
    """A disk that answers nothing any more."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self.release = threading.Event()

    def read(self, index: int) -> np.ndarray:
        self.release.wait(20)
        return super().read(index)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_hangs_as_a_whole_ends_the_reading(monkeypatch, workers):
    monkeypatch.setattr(fetch, "_PATIENCE", 0.2)
    monkeypatch.setattr(workers_module, "_GRACE", 0.2)
    dead = Dead(array_samples().pixels.array)
    samples, orders = replace(array_samples(), pixels=dead), [np.arange(4), np.arange(4, 8)]
    lost = Unreadable(10, 0.1)
    try:
        with pytest.raises(UserError, match="reading hangs"):
            list(deliver(samples, orders, View(GREY28, True), workers=workers))
        with pytest.raises(UserError, match="can no longer be read"):
            list(
                deliver(
                    samples, orders, View(GREY28, True, Augment(seed=1), unreadable=lost), workers=workers
                )
            )
    finally:
        dead.release.set()


@pytest.mark.parametrize("workers", [1, 5])
def test_a_read_that_hangs_once_changes_nothing(hanging, workers):
    (expected,) = deliver(array_samples(), [np.arange(10)], View(GREY28, True))
    (found,) = deliver(hanging(1), [np.arange(10)], View(GREY28, True), workers=workers)
    assert (found.images == expected.images).all() and (found.indices == expected.indices).all()


@pytest.mark.parametrize("workers", [1, 5])
def test_a_read_that_hangs_twice_is_left_out_and_the_others_come(hanging, workers):
    lost = Unreadable(10, 0.1)
    view = View(GREY28, True, Augment(seed=1), unreadable=lost)
    orders = [np.arange(10), np.arange(7)]
    found = list(deliver(hanging(9), orders, view, workers=workers))
    expected = list(deliver(array_samples(), orders, replace(view, unreadable=None)))
    kept = [index for index in range(10) if index != 8]
    assert found[0].indices.tolist() == kept and (found[0].images == expected[0].images[kept]).all()
    assert (found[1].images == expected[1].images).all()
    assert lost.reasons == {"train/00008": "reading it hangs, 0.3 s, twice"}
