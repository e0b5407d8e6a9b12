"""mask_objectives.py: every loss against loops in float64, torch, torchvision and segmentation-models-pytorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from warmstart.tasks.mask_objectives import (
    MaskLoss,
    lovasz_softmax,
    mask_divergence,
    mask_objective,
    region_sums,
    resized,
    tversky,
)

K, IGNORE = 5, 255
WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 1.25, 1.0], dtype=torch.float64)
EVERYTHING = MaskLoss(
    "focal", 1.5, 0.5, ce_weight=0.7, dice_weight=1.5, lovasz_weight=0.5, tversky_weight=0.25
)


def _batch(seed: int = 0, num: int = 3, ignore: int = IGNORE) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 3 is in no mask; a third of the pixels is ignored, the whole of image 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, K, 4, 5, generator=generator, dtype=torch.float64) * 2
    targets = torch.randint(K, (num, 4, 5), generator=generator)
    targets[targets == 3] = 0
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = ignore
    targets[1:2] = ignore
    return logits, targets.to(torch.uint8)


def _pixels(
    logits: torch.Tensor, targets: torch.Tensor, ignore: int = IGNORE
) -> list[tuple[np.ndarray, int]]:
    """(probabilities (K,), class) of each valid pixel."""
    rows = logits.detach().double().numpy().transpose(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return [
        (np.exp(row) / np.exp(row).sum(), int(target))
        for row, target in zip(rows, targets.numpy().ravel(), strict=True)
        if target != ignore
    ]


def _value(loss: MaskLoss, logits: torch.Tensor, targets: torch.Tensor, **others: object) -> float:
    named = {"ignore": IGNORE, "class_weights": None, "label_smoothing": 0.0, **others}
    loss_sum, weight = mask_objective(logits, targets, loss=loss, **named)
    return (loss_sum / weight).item()


def _soft_counts(pixels: list[tuple[np.ndarray, int]], num_classes: int = K) -> tuple[np.ndarray, ...]:
    hits, predicted, wanted = (np.zeros(num_classes) for _ in range(3))
    for p, target in pixels:
        hits[target] += p[target]
        predicted += p
        wanted[target] += 1
    return hits, predicted, wanted


# ---- cross entropy and focal


@pytest.mark.parametrize(
    ("weights", "smoothing", "ignore"), list(itertools.product((None, WEIGHTS), (0.0, 0.2), (IGNORE, 2)))
)
def test_cross_entropy_is_torchs_mean_and_a_batch_in_parts_the_same(weights, smoothing, ignore):
    """`ignore` may also be one of the classes (2), for a background that does not count."""
    logits, targets = _batch(ignore=ignore)
    targets[targets == IGNORE] = ignore
    logits.requires_grad_()
    settings = (ignore, weights, smoothing, MaskLoss())
    expected = F.cross_entropy(
        logits, targets.long(), weights, ignore_index=ignore, label_smoothing=smoothing
    )
    parts = [mask_objective(logits[cut], targets[cut], *settings) for cut in (slice(0, 1), slice(1, 3))]
    found = sum(part for part, _ in parts) / sum(weight for _, weight in parts)
    assert found.item() == pytest.approx(expected.item(), rel=1e-13)
    (gradient,), (wanted,) = (torch.autograd.grad(value, logits) for value in (found, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-15)
    if weights is None:
        assert sum(weight for _, weight in parts).item() == (targets != ignore).sum()


@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.25)])
def test_focal_loss_by_hand(gamma, alpha):
    logits, targets = _batch()
    loss = MaskLoss("focal", gamma, alpha)
    by_hand = [
        -alpha * (1 - p[target]) ** gamma * np.log(p[target]) for p, target in _pixels(logits, targets)
    ]
    assert _value(loss, logits, targets) == pytest.approx(np.mean(by_hand), rel=1e-12)
    if gamma == 0:
        assert _value(loss, logits, targets) == pytest.approx(_value(MaskLoss(), logits, targets), rel=1e-15)


def test_focal_loss_of_two_classes_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    logits, targets = _batch()
    two, yes = torch.stack([torch.zeros_like(logits[:, 0]), logits[:, 0]], 1), (targets % 2).to(torch.uint8)
    expected = sigmoid_focal_loss(logits[:, 0], yes.double(), alpha=-1, gamma=2, reduction="mean").item()
    assert _value(MaskLoss("focal", 2.0, 1.0), two, yes) == pytest.approx(expected, rel=1e-12)


def test_focal_loss_keeps_weights_and_smoothing():
    logits, targets = _batch()
    expected = loss_sum = 0.0
    for p, target in _pixels(logits, targets):
        weights, spread = WEIGHTS.numpy(), np.log(p)
        plain = -0.9 * weights[target] * spread[target] - 0.1 / K * (weights @ spread)
        loss_sum += 0.5 * (1 - p[target]) ** 1.5 * plain
        expected += weights[target]
    loss = MaskLoss("focal", 1.5, 0.5)
    found = _value(loss, logits, targets, class_weights=WEIGHTS, label_smoothing=0.1)
    assert found == pytest.approx(loss_sum / expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_pixel_that_is_surely_right_has_a_gradient(gamma):
    """(1 - p)^.5 is infinitely steep at p = 1."""
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0] = 200.0
    logits.requires_grad_()
    targets = torch.zeros(1, 1, 2, dtype=torch.uint8)
    mask_objective(logits, targets, IGNORE, None, 0.0, MaskLoss("focal", gamma))[0].backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


# ---- Dice and Tversky


@pytest.mark.parametrize(
    ("classes", "alpha"), list(itertools.product(("present", "all"), (0.0, 0.3, 0.5, 1.0)))
)
def test_dice_and_tversky_by_hand(classes, alpha):
    logits, targets = _batch()
    hits, predicted, wanted = _soft_counts(_pixels(logits, targets))
    costs = 1 - hits / (hits + alpha * (predicted - hits) + (1 - alpha) * (wanted - hits) + 1e-7)
    if classes == "present":
        costs = costs[wanted > 0]
        assert len(costs) == K - 1
    elif alpha == 0:
        costs[3] = 0  # false pixels cost nothing, and none can be missed
    loss = MaskLoss(ce_weight=0, tversky_weight=1, tversky_alpha=alpha, dice_classes=classes)
    assert _value(loss, logits, targets) == pytest.approx(costs.mean(), abs=1e-6)
    if alpha == 0.5:
        dice = MaskLoss(ce_weight=0, dice_weight=1, dice_classes=classes)
        terms = 1 - 2 * hits / (predicted + wanted)
        expected = terms[wanted > 0].mean() if classes == "present" else terms.mean()
        assert _value(dice, logits, targets) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_batch_losses_are_those_of_segmentation_models_pytorch(seed):
    """smp divides what the present classes cost by K; its Lovasz takes the present ones, as the paper does."""
    smp = pytest.importorskip("segmentation_models_pytorch").losses
    logits, targets = _batch(seed)
    share = len(torch.unique(targets)) - 1
    pairs: list[tuple[Callable[..., torch.Tensor], dict[str, float], float]] = [
        (smp.DiceLoss("multiclass", ignore_index=IGNORE), {"dice_weight": 1}, K / share),
        (
            smp.TverskyLoss("multiclass", ignore_index=IGNORE, alpha=0.3, beta=0.7),
            {"tversky_weight": 1},
            K / share,
        ),
        (smp.LovaszLoss("multiclass", ignore_index=IGNORE), {"lovasz_weight": 1}, 1.0),
    ]
    for reference, settings, factor in pairs:
        one, other = (logits.float().requires_grad_() for _ in range(2))
        loss_sum, weight = mask_objective(one, targets, IGNORE, None, 0.0, MaskLoss(ce_weight=0, **settings))
        expected = reference(other, targets.long()) * factor
        assert (loss_sum / weight).item() == pytest.approx(expected.item(), abs=1e-6), settings
        (found,) = torch.autograd.grad(loss_sum / weight, one)
        (wanted,) = torch.autograd.grad(expected, other)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_absent_classes_and_near_perfect_predictions():
    """The document's Dice over all 19 classes costs .84 here, however good the model is (reference 3D)."""
    targets = torch.arange(3, dtype=torch.uint8).repeat_interleave(48).view(1, 12, 12)
    logits = F.one_hot(targets.long(), 19).permute(0, 3, 1, 2).double() * 14
    settings = {"ce_weight": 0, "dice_weight": 1}
    assert _value(MaskLoss(**settings, dice_classes="all"), logits, targets) == pytest.approx(0.842, abs=2e-3)
    assert _value(MaskLoss(**settings), logits, targets) < 1e-4
    # The document's own lines (its Dice is per image, which is the same for one).
    p, one_hot = logits.softmax(1), F.one_hot(targets.long(), 19).permute(0, 3, 1, 2)
    both, together = (p * one_hot).sum((2, 3)), p.sum((2, 3)) + one_hot.sum((2, 3))
    document = 1 - ((2 * both + 1e-8) / (together + 1e-8)).mean()
    found = _value(MaskLoss(**settings, dice_classes="all"), logits, targets)
    assert found == pytest.approx(document.item(), abs=2e-3)


def test_a_class_that_is_neither_there_nor_predicted_costs_nothing():
    targets = torch.zeros(1, 3, 3, dtype=torch.uint8)
    logits = torch.zeros(1, 3, 3, 3, dtype=torch.float64)
    logits[:, 0] = 200
    loss = MaskLoss(ce_weight=0, dice_weight=1, dice_classes="all")
    assert _value(loss, logits, targets) == pytest.approx(0, abs=1e-12)


# ---- Lovasz


def _lovasz_by_hand(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The Lovasz extension from its definition: sum of error x (loss of the set with the pixel - without it)."""
    pixels = _pixels(logits, targets)
    costs = []
    for k in sorted({target for _, target in pixels}):
        errors = [1 - p[k] if target == k else p[k] for p, target in pixels]
        is_class = [target == k for _, target in pixels]
        wrong: set[int] = set()
        before = total = 0.0
        for index in sorted(range(len(errors)), key=lambda i: -errors[i]):
            wrong.add(index)
            missed = sum(is_class[i] for i in wrong)
            union = sum(is_class) + len(wrong) - missed
            now = 1 - (sum(is_class) - missed) / union
            total += errors[index] * (now - before)
            before = now
        costs.append(total)
    return float(np.mean(costs))


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_softmax_by_its_definition(seed):
    logits, targets = _batch(seed)
    found = _value(MaskLoss(ce_weight=0, lovasz_weight=1), logits, targets)
    assert found == pytest.approx(_lovasz_by_hand(logits, targets), rel=1e-12)


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou():
    _, targets = _batch(3)
    predicted = torch.randint(K, targets.shape, generator=torch.Generator().manual_seed(4))
    p = F.one_hot(predicted, K).permute(0, 3, 1, 2).double()
    valid = targets != IGNORE
    ious = []
    for k in torch.unique(targets[valid]).tolist():
        both = (predicted == k) & (targets == k)
        either = ((predicted == k) | (targets == k)) & valid
        ious.append(both.sum().item() / either.sum().item())
    assert lovasz_softmax(p, targets.long(), IGNORE).item() == pytest.approx(1 - np.mean(ious), rel=1e-12)


# ---- all together


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_parts_add_up(weights):
    logits, targets = _batch()
    others = {"class_weights": weights, "label_smoothing": 0.1}
    pixels = _value(
        replace(MaskLoss(), pixel="focal", focal_gamma=1.5, focal_alpha=0.5), logits, targets, **others
    )
    sums = region_sums(logits.softmax(1), targets.long(), IGNORE)
    expected = 0.7 * pixels + 1.5 * tversky(sums, 0.5, "present").item()
    expected += 0.25 * tversky(sums, 0.3, "present").item()
    expected += 0.5 * _lovasz_by_hand(logits, targets)
    assert _value(EVERYTHING, logits, targets, **others) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        MaskLoss(),
        MaskLoss("focal", 0.5, 1.0),
        MaskLoss(ce_weight=0, dice_weight=1),
        MaskLoss(ce_weight=0, dice_weight=1, dice_classes="all"),
        MaskLoss(ce_weight=0, tversky_weight=1),
        MaskLoss(ce_weight=0, lovasz_weight=1),
        EVERYTHING,
    ],
)
def test_gradients_are_those_of_differences(loss):
    logits, targets = _batch(num=2)
    logits = logits[..., :3, :2].contiguous().requires_grad_()
    small = targets[:, :3, :2]

    def sums(values: torch.Tensor) -> torch.Tensor:
        return mask_objective(values, small, IGNORE, WEIGHTS, 0.1, loss)[0]

    assert torch.autograd.gradcheck(sums, (logits,))
    (gradient,) = torch.autograd.grad(sums(logits), logits)
    assert (gradient.permute(0, 2, 3, 1)[small == IGNORE] == 0).all() and gradient.abs().sum() > 0


@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_batch_without_a_valid_pixel_weighs_nothing(weights, classes):
    logits, targets = _batch()
    logits.requires_grad_()
    loss = replace(EVERYTHING, dice_classes=classes)
    loss_sum, weight = mask_objective(logits, torch.full_like(targets, IGNORE), IGNORE, weights, 0.1, loss)
    assert loss_sum.item() == weight.item() == 0
    loss_sum.backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_class_weights_are_of_the_pixels_loss_only():
    """A batch of nothing but weight 0 weighs nothing; where the pixels' loss is off, nobody reads the weights."""
    logits, targets = _batch()
    only = torch.full_like(targets, 1)
    loss_sum, weight = mask_objective(logits, only, IGNORE, WEIGHTS, 0.0, EVERYTHING)
    assert loss_sum.item() == weight.item() == 0
    without = replace(EVERYTHING, ce_weight=0.0)
    for class_weights in (None, WEIGHTS):
        parts = mask_objective(logits, targets, IGNORE, class_weights, 0.0, without)
        assert parts[1] == (targets != IGNORE).sum()
        assert (parts[0] / parts[1]).item() == _value(without, logits, targets)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_no_value_is_read_on_the_host(weights):
    logits, targets = (tensor.to("meta") for tensor in _batch())
    on_meta = None if weights is None else weights.to("meta")
    loss_sum, weight = mask_objective(logits, targets, IGNORE, on_meta, 0.1, EVERYTHING)
    assert loss_sum.device.type == weight.device.type == "meta" and loss_sum.shape == weight.shape == ()


def test_low_precision_is_summed_in_float32():
    logits, targets = _batch()
    low = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, weight = mask_objective(low, targets, IGNORE, None, 0.1, EVERYTHING)
    assert loss_sum.dtype == weight.dtype == torch.float32
    expected, _ = mask_objective(low.double(), targets, IGNORE, None, 0.1, EVERYTHING)
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_class_only():
    logits, targets = _batch()
    one = torch.where(targets == IGNORE, targets, 0).to(torch.uint8)
    assert _value(EVERYTHING, logits[:, :1], one) == pytest.approx(0, abs=1e-12)


def test_ids_of_masks_with_many_classes():
    logits = torch.randn(1, 300, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[[299, 65535], [256, 0]]], dtype=torch.int32)
    found = _value(MaskLoss(), logits, targets, ignore=65535)
    assert found == pytest.approx(
        F.cross_entropy(logits, targets.long(), ignore_index=65535).item(), rel=1e-13
    )


def test_outputs_are_resized_between_the_centres_of_pixels():
    rows = torch.tensor([[0.0, 1.0]]).view(1, 1, 1, 2)
    assert resized(rows, 1, 4).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert resized(rows, 1, 2) is rows


def test_the_divergence_of_masks_counts_the_pixels_that_have_a_class() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (torch.from_numpy(rng.normal(0, 2, (2, 3, 4, 5))) for _ in range(2))
    targets = torch.from_numpy(rng.integers(0, 3, (2, 4, 5)))
    targets[0, :2] = 255
    found = mask_divergence(ours, theirs, targets, 255, 4.0)
    q, p = (theirs / 4).softmax(1), (ours / 4).log_softmax(1)
    pixels = 16 * (q * (q.log() - p)).sum(1)
    assert float(found) == pytest.approx(float(pixels[targets != 255].sum()), rel=1e-12)
    small = theirs[:, :, ::2, ::2]
    whole = torch.nn.functional.interpolate(small, (4, 5), mode="bilinear", align_corners=False)
    assert float(mask_divergence(ours, small, targets, 255, 4.0)) == pytest.approx(
        float(mask_divergence(ours, whole, targets, 255, 4.0)), rel=1e-12
    )
