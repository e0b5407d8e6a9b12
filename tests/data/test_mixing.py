from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta, ks_2samp, kstest
from torchvision.transforms import v2

from warmstart.data.augment import Augment
from warmstart.data.batches import View, training_batches
from warmstart.data.mixing import Mixing
from warmstart.data.order import balanced_order, epoch_order, epoch_windows
from warmstart.data.samples import ArrayPixels, Samples
from warmstart.errors import UserError
from warmstart.records import Preprocessing

GREY = Preprocessing((12, 14), (0.5,), (0.5,))


def mixing(num: int, mixup: float = 1.0, cutmix: float = 0.0, seed: int = 3) -> Mixing:
    return Mixing(mixup, cutmix, 3, seed, lambda epoch: epoch_order(num, 0, epoch))


def samples(num: int, multi_label: bool = False) -> Samples:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (num, 12, 14), dtype=np.uint8)
    targets = (
        (np.arange(num)[:, None] % (2, 3, 5) == 0).astype(np.uint8) if multi_label else np.arange(num) % 3
    )
    return Samples(tuple(f"train/{i}" for i in range(num)), targets, ArrayPixels(pixels))


def test_neighbours_in_the_order_are_partners():
    pairs = mixing(7).pairs(2)
    order = epoch_order(7, 0, 2)
    expected = order[[1, 0, 3, 2, 5, 4, 6]]  # the last has nobody
    assert pairs.partners(order).tolist() == expected.tolist()
    assert pairs.partners(order[[4, 0, 6]]).tolist() == expected[[4, 0, 6]].tolist()
    assert pairs.partners(order[:0]).tolist() == []


def test_only_missing_partners_are_added():
    pairs, order = mixing(8).pairs(0), epoch_order(8, 0, 0)
    assert pairs.complete(order[2:6]).tolist() == order[2:6].tolist()
    assert pairs.complete(order[1:4]).tolist() == [*order[1:4].tolist(), order[0]]
    assert sorted(pairs.complete(order[[0, 3, 6]])[3:].tolist()) == sorted(order[[1, 2, 7]].tolist())


def test_repeats_of_a_balanced_order_have_partners_too():
    targets = np.array([0] * 9 + [1])
    order = balanced_order(targets, 0, 0)
    pairs = Mixing(1.0, 0.0, 2, 0, lambda epoch: order).pairs(0)
    assert pairs.partners(order).tolist() == order.reshape(-1, 2)[:, ::-1].ravel().tolist()


def everything(
    view: View, data: Samples, order: np.ndarray, batch_size: int, workers: int = 0, **more
) -> dict:
    """place -> (pixels, soft target, key), of an epoch cut in this way."""
    windows = epoch_windows(order, batch_size, 2)[more.pop("first", 0) :]
    part = more.get("part", np.asarray)
    places = np.concatenate([part(batch) for window in windows for batch in window])
    batches = list(training_batches(data, view, windows, 4, workers, part))
    assert all(len(b.images) == len(b.targets) == len(b.keys) == len(b.indices) for b in batches)
    assert np.concatenate([b.indices for b in batches]).tolist() == (places % len(data)).tolist()
    rows = [(b.images[row], b.targets[row], b.keys[row]) for b in batches for row in range(len(b))]
    return dict(zip(places.tolist(), rows, strict=True))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_mixed_image_depends_on_the_order_alone(mixup, cutmix, multi_label):
    num = 23
    data, order = samples(num, multi_label), epoch_order(num, 0, 4)
    view = View(GREY, True, Augment(20, 0.1, flip=0.5), mixing(num, mixup, cutmix))
    whole = everything(view, data, order, 64)
    assert len(whole) == num
    for cut in (
        {"batch_size": 4},
        {"batch_size": 5, "workers": 2},
        {"batch_size": 1},
        {"batch_size": 4, "first": 2},
        {"batch_size": 8, "part": lambda batch: np.array_split(batch, 3)[1]},
        {"batch_size": 2, "part": lambda batch: batch[:0], "workers": 1},
    ):
        for place, parts in everything(view, data, order, **cut).items():
            assert all(np.array_equal(a, b) for a, b in zip(parts, whole[place], strict=True))


def test_mixup_blends_pixels_and_targets_alike():
    num = 10
    data, order = samples(num), epoch_order(num, 0, 4)
    plain = everything(View(GREY, True), data, order, 4)
    blended = everything(View(GREY, True, None, mixing(num)), data, order, 4)
    for number, pair in enumerate(order.reshape(-1, 2).tolist()):
        is_cut, share, _, _ = mixing(num).draw(4, number)
        assert not is_cut
        for own, other in (pair, pair[::-1]):
            expected = share * plain[own][0] + (1 - share) * plain[other][0].astype(float)
            assert np.abs(blended[own][0] - expected).max() <= 0.51
            target = share * np.eye(3)[plain[own][1]] + (1 - share) * np.eye(3)[plain[other][1]]
            assert blended[own][1] == pytest.approx(target, abs=1e-6) and blended[own][1].dtype == np.float32


def test_cutmix_counts_the_pixels_that_are_pasted():
    num = 2000
    data, order = samples(num), np.arange(num)
    plain = everything(View(GREY, True), data, order, 50)
    settings = Mixing(0.0, 1.0, 3, 0, lambda epoch: order)
    shares = []
    for place, (pixels, target, _) in everything(View(GREY, True, None, settings), data, order, 50).items():
        own, other = plain[place][0], plain[place ^ 1][0]
        is_other = pixels != own
        assert (pixels[is_other] == other[is_other]).all()
        rows, columns = np.flatnonzero(is_other.any(axis=(1, 2))), np.flatnonzero(is_other.any(axis=(0, 2)))
        area = 0 if not len(rows) else (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / own.size
        expected = (1 - area) * np.eye(3)[place % 3] + area * np.eye(3)[(place ^ 1) % 3]
        assert target == pytest.approx(expected, abs=0.02)  # an edge may be alike by chance
        shares.append(1 - area)
    theirs = v2.CutMix(num_classes=3)
    torch.manual_seed(0)
    expected = [theirs.make_params([torch.empty(1, 12, 14)])["lam_adjusted"] for _ in range(1000)]
    assert ks_2samp(shares[::2], expected).pvalue > 0.01


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_cutmix_moves_boxes_of_masks_with_their_pixels(kind):
    """Masks that say of each image who it is, so that every pixel must lie on its own number."""
    num, order = 40, epoch_order(40, 0, 4)
    masks = np.broadcast_to(np.arange(num, dtype=kind)[:, None, None] * 6, (num, 12, 14))
    images = np.repeat(masks[..., None].astype(np.uint8), 3, axis=3)
    pairs = mixing(num, 0.0, 1.0).pairs(4)
    whole: dict[int, np.ndarray] = {}
    for places in (order, order[:7], order[5:6], order[::-3]):
        needed = pairs.complete(places)
        before = masks[needed].copy()
        pixels, moved = pairs.mix(places, images[needed], before)
        assert moved.dtype == kind and moved.shape == (len(places), 12, 14)
        assert (pixels == moved[..., None]).all() and (before == masks[needed]).all()
        for place, mask in zip(places.tolist(), moved, strict=True):
            assert (whole.setdefault(place, mask) == mask).all()
    others = [set(np.unique(mask // 6).tolist()) - {place} for place, mask in whole.items()]
    assert sum(map(bool, others)) > 20
    partners = dict(zip(order.tolist(), pairs.partners(order).tolist(), strict=True))
    assert all(found <= {partners[place]} for place, found in zip(whole, others, strict=True))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_mixup_of_masks_is_refused(cutmix):
    masks = np.zeros((2, 12, 14), np.uint8)
    with pytest.raises(UserError, match=r"--mixup 0.4: the targets are index masks"):
        mixing(2, 0.4, cutmix).pairs(0).mix(np.arange(2), np.zeros((2, 12, 14, 3), np.uint8), masks)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_have_a_beta_distribution(alpha):
    one = [mixing(2, alpha).draw(0, pair)[1] for pair in range(2000)]
    assert kstest(one, beta(alpha, alpha).cdf).pvalue > 0.01
    both = [mixing(2, alpha, 1.0).draw(1, pair) for pair in range(4000)]
    assert abs(np.mean([is_cut for is_cut, *_ in both]) - 0.5) < 0.03
    assert kstest([share for is_cut, share, *_ in both if not is_cut], beta(alpha, alpha).cdf).pvalue > 0.01
    assert kstest([share for is_cut, share, *_ in both if is_cut], "uniform").pvalue > 0.01
    for number in (2, 3):
        assert kstest([draw[number] for draw in both], "uniform").pvalue > 0.01


def test_seed_epoch_and_pair_each_matter():
    draws = {mixing(2, seed=seed).draw(epoch, pair) for seed in (0, 1) for epoch in (0, 1) for pair in (0, 1)}
    assert len(draws) == 8


def test_draws_are_pinned():
    assert mixing(2, 0.5, 0.5, seed=7).draw(3, 11) == pytest.approx(PINNED)  # recorded runs depend on it


PINNED = (True, 0.6989550745432608, 0.31713132545224376, 0.12095853615066732)
