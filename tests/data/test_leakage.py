"""Groups that share a picture are one; what a division tears apart is counted once per group."""

from __future__ import annotations

import numpy as np

from warmstart.data.leakage import Leakage, joined, leakage


def test_groups_that_share_a_picture_are_one() -> None:
    digests = [b"a", b"b", b"c", b"b", b"d", b"d", b"e"]
    found = joined(np.array([7, 7, 3, 3, 5, 9, 1]), digests)
    assert len(set(found[:4])) == 1 and found[4] == found[5] and len(set(found)) == 3
    assert sorted(set(found.tolist())) == [0, 1, 2]
    alone = joined(None, digests)
    assert alone[1] == alone[3] and alone[4] == alone[5] and len(set(alone)) == 5


def test_a_group_in_three_splits_is_torn_once() -> None:
    groups = np.array([0, 0, 0, 1, 1, 2])
    words = np.array(["train", "val", "test", "train", "train", "val"])
    digests = [b"a", b"a", b"b", b"c", b"d", b"e"]
    assert leakage("so", words, groups, digests) == Leakage("so", torn=1, images=2, copies=1)
