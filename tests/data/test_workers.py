from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from warmstart.data import workers
from warmstart.data.samples import ArrayPixels, FilePixels, Samples

FILES = Samples(("a",), np.zeros(1, dtype=np.int64), FilePixels((Path("a"),)))
ARRAY = Samples(("a",), np.zeros(1, dtype=np.int64), ArrayPixels(np.zeros((1, 2, 2), dtype=np.uint8)))


def test_auto_leaves_two_cores_to_the_model(monkeypatch):
    for cores, expected in ((1, 0), (2, 0), (4, 2), (64, 8)):
        monkeypatch.setattr(workers, "num_cores", lambda cores=cores: cores)
        assert workers.resolve_workers("auto", FILES) == expected
        assert workers.resolve_workers("auto", ARRAY) == 0
        assert workers.scan_workers("auto") == min(cores, 8)


def test_numbers_to_try_fit_the_cores_and_are_none_where_nothing_is_waited_for(monkeypatch):
    for cores, expected in ((1, ()), (2, (0, 1, 2)), (6, (0, 1, 2, 4)), (64, (0, 1, 2, 4, 8))):
        monkeypatch.setattr(workers, "num_cores", lambda cores=cores: cores)
        assert workers.candidates(FILES, False, 1) == expected
        assert workers.candidates(ARRAY, True, 1) == expected
        assert workers.candidates(ARRAY, False, 1) == ()
    assert workers.candidates(FILES, False, 32) == (0, 1, 2)  # 32 processes share 64 cores
    assert workers.candidates(FILES, False, 64) == ()


def test_the_fewest_of_the_equally_fast_are_taken():
    choice = workers.WorkersChoice.fastest({0: 80.0, 1: 98.04, 2: 100.0, 4: 60.0})
    assert choice.to_json() == {
        "value": 1,
        "origin": "measured",
        "images_per_second": {"0": 80.0, "1": 98.0, "2": 100.0, "4": 60.0},
    }
    assert workers.WorkersChoice.fastest({0: 80.0, 1: 96.0, 2: 100.0}).value == 2


def test_a_number_is_taken_as_it_is():
    assert workers.resolve_workers(3, ARRAY) == workers.scan_workers(3) == 3
    assert workers.scan_workers(0) == 0
    assert workers.num_cores() >= 1


def test_a_pool_of_threads_computes_in_order_and_raises_where_the_result_is_asked_for():
    with workers.DecodePool(3) as pool:
        assert list(pool.map(lambda number: number * number, range(50))) == [
            number * number for number in range(50)
        ]
        failed = pool.submit(int, "x")
        with pytest.raises(ValueError, match="'x'"):
            failed.result(5)
        assert pool.submit(int, "7").result(5) == 7, "the thread goes on after an error"


def test_a_thread_that_is_given_up_is_replaced_and_not_waited_for():
    release, thread = threading.Event(), []

    def hang() -> None:
        thread.append(threading.current_thread())
        release.wait(20)

    pool = workers.DecodePool(1)
    hanging = pool.submit(hang)
    behind = pool.submit(int, "1")
    while not thread:
        pass
    again = pool.again(thread[0], int, "3")
    assert again.result(5) == 3 and behind.result(5) == 1
    waiting = [pool.submit(release.wait, 0.2), pool.submit(int, "2")]
    pool.shutdown(cancel_futures=True)
    assert waiting[1].cancelled() and not hanging.done()
    release.set()
    thread[0].join(5)
    assert hanging.done() and not thread[0].is_alive()
