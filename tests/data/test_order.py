from __future__ import annotations

import numpy as np

from warmstart.data.order import balanced_order, epoch_order, epoch_windows, weighted_order


def test_the_order_is_a_permutation_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert (epoch_order(50, 1, 1) == orders[1, 1]).all()
    assert epoch_order(8, 0, 0).tolist() == PINNED  # recorded runs depend on it


PINNED = [2, 4, 3, 0, 6, 5, 1, 7]


def test_windows_have_every_item_once_and_none_alone():
    for num in [*range(1, 40), 64, 65, 97]:
        order = epoch_order(num, 0, 0)
        for batch_size in (1, 2, 3, 4, 8, 32):
            for accumulate in (1, 2, 3, 5):
                windows = epoch_windows(order, batch_size, accumulate)
                sizes = [sum(map(len, window)) for window in windows]
                micro = [len(part) for window in windows for part in window]
                size = batch_size * accumulate
                case = (num, batch_size, accumulate, micro)
                assert (
                    np.concatenate([part for window in windows for part in window]).tolist() == order.tolist()
                )
                assert all(number == size for number in sizes[:-1]), case
                assert 1 <= sizes[-1] <= size + 1, case
                assert max(micro) <= max(batch_size, 3 if batch_size == 2 else 0), case
                if batch_size > 1 and num > 1:
                    assert min(micro) > 1, case
                if size > 1 and num > 1:
                    assert min(sizes) > 1, case
                for window in windows:
                    lengths = [len(part) for part in window]
                    assert max(lengths) - min(lengths) <= 1, case


def test_windows_in_numbers():
    def lengths(*args: int) -> list[list[int]]:
        return [[len(part) for part in window] for window in epoch_windows(np.arange(args[0]), *args[1:])]

    assert lengths(10, 4, 1) == [[4], [4], [2]]
    assert lengths(9, 4, 1) == [[4], [3, 2]]
    assert lengths(22, 4, 2) == [[4, 4], [4, 4], [3, 3]]
    assert lengths(17, 8, 2) == [[6, 6, 5]]
    assert lengths(3, 1, 1) == [[1], [1], [1]]
    assert lengths(1, 32, 1) == [[1]]
    assert epoch_windows(np.arange(0), 4, 1) == []


def test_the_order_does_not_know_the_batch_size():
    order = epoch_order(30, 0, 2)
    for shape in ((4, 1), (8, 2), (1, 1)):
        flat = [part for window in epoch_windows(order, *shape) for part in window]
        assert (np.concatenate(flat) == order).all()


def test_a_balanced_order_shows_every_class_equally_often():
    targets = np.repeat([0, 1, 2], [60, 30, 7])
    for epoch in range(4):
        places = balanced_order(targets, 1, epoch)
        repeats, indices = np.divmod(places, 97)
        counts = np.bincount(targets[indices])
        assert len(places) == 97 and counts.max() - counts.min() <= 1
        assert len(set(places.tolist())) == 97, "each showing of an image has a place of its own"
        for label in range(3):
            shown = np.bincount(indices, minlength=97)[targets == label]
            assert shown.max() - shown.min() <= 1, "the images of a class take turns"
        assert repeats.max() == 4  # 32 or 33 showings of 7 images
    assert (balanced_order(targets, 1, 0) == balanced_order(targets, 1, 0)).all()
    assert (balanced_order(targets, 1, 0) != balanced_order(targets, 1, 1)).any()
    first = [np.bincount(targets[balanced_order(targets, 1, epoch) % 97]).tolist() for epoch in range(3)]
    assert np.sum(first, axis=0).tolist() == [97, 97, 97], "the remainder goes to each class in turn"


def test_over_epochs_a_frequent_class_shows_all_its_images():
    targets = np.repeat([0, 1], [90, 10])
    seen = {int(place) % 100 for epoch in range(12) for place in balanced_order(targets, 0, epoch)}
    assert len(seen) == 100


def test_a_weight_says_how_often_an_image_comes():
    rng = np.random.default_rng(0)
    weights = np.where(rng.random(200) < 0.2, 3.0, 1.0)
    expected = 200 * weights / weights.sum()
    total = np.zeros(200)
    for epoch in range(100):
        order = weighted_order(weights, 1, epoch)
        assert len(order) == len(set(order.tolist())) == 200, "every showing has a place of its own"
        times = np.bincount(order % 200, minlength=200)
        assert (np.abs(times - expected) < 1).all()
        for index in np.flatnonzero(times > 1):
            assert sorted(order[order % 200 == index] // 200) == list(range(times[index]))
        total += times
    assert np.abs(total / 100 - expected).max() < 0.25
    assert (weighted_order(weights, 1, 7) == weighted_order(weights, 1, 7)).all()
    assert (weighted_order(weights, 1, 7) != weighted_order(weights, 2, 7)).any()
    assert sorted(weighted_order(np.full(50, 0.7), 0, 0).tolist()) == list(range(50)), (
        "equal weights: once each"
    )
