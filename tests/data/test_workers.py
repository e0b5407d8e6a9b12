from __future__ import annotations

from pathlib import Path

import numpy as np

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


def test_a_number_is_taken_as_it_is():
    assert workers.resolve_workers(3, ARRAY) == workers.scan_workers(3) == 3
    assert workers.scan_workers(0) == 0
    assert workers.num_cores() >= 1
