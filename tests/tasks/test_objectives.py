"""objectives.py: a window cut in any way has the loss that torch gives the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from warmstart.tasks import objectives
from warmstart.tasks.objectives import cross_entropy, mean_answers

WEIGHTS = torch.tensor([0.5, 0.0, 2.0, 1.25], dtype=torch.float64)
SETTINGS = list(itertools.product((None, WEIGHTS), (0.0, 0.1, 0.9)))


def _window(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(37, 4, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(4, (37,), generator=generator)


def _by_hand(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, smoothing: float) -> float:
    """The formula of the docstring, item by item."""
    loss_sum = weight = 0.0
    for row, target in zip(logits, targets, strict=True):
        p = row - np.log(np.exp(row).sum())
        loss_sum += -(1 - smoothing) * weights[target] * p[target] - smoothing / len(row) * (weights @ p)
        weight += weights[target]
    return loss_sum / weight


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_a_window_in_parts_equals_torch_and_the_formula(weights, smoothing):
    for seed in range(5):
        logits, targets = _window(seed)
        logits.requires_grad_()
        expected = F.cross_entropy(logits, targets, weights, label_smoothing=smoothing)
        cuts = (slice(0, 8), slice(8, 9), slice(9, 37))
        parts = [cross_entropy(logits[cut], targets[cut], weights, smoothing) for cut in cuts]
        found = sum(loss for loss, _ in parts) / sum(weight for _, weight in parts)
        assert found.item() == pytest.approx(expected.item(), rel=1e-13)
        ones = torch.ones(4, dtype=torch.float64) if weights is None else weights
        by_hand = _by_hand(logits.detach().numpy(), targets.numpy(), ones.numpy(), smoothing)
        assert found.item() == pytest.approx(by_hand, rel=1e-12)
        (gradient,) = torch.autograd.grad(found, logits)
        (expected_gradient,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_shares_of_classes(weights, smoothing):
    logits, targets = _window(1)
    one_hot = F.one_hot(targets, 4).float()
    for found, expected in zip(
        cross_entropy(logits, one_hot, weights, smoothing),
        cross_entropy(logits, targets, weights, smoothing),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    shares = torch.rand(37, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares /= shares.sum(dim=1, keepdim=True)
    parts = [cross_entropy(logits[cut], shares[cut], weights, smoothing) for cut in (slice(9), slice(9, 37))]
    loss_sum, weight = (torch.stack(values).sum() for values in zip(*parts, strict=True))
    expected = F.cross_entropy(logits, shares, weights, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss_sum, expected, rtol=1e-13, atol=0)
    ones = torch.ones(4, dtype=torch.float64) if weights is None else weights
    smoothed = (1 - smoothing) * shares + smoothing / 4
    by_hand = -(ones * smoothed * logits.log_softmax(dim=1)).sum()
    torch.testing.assert_close(loss_sum, by_hand, rtol=1e-12, atol=0)
    assert weight.item() == pytest.approx((shares @ ones).sum().item(), rel=1e-13)


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_low_precision_is_summed_in_float32(weights, smoothing):
    logits, targets = _window(0)
    low = logits.bfloat16()
    expected, expected_weight = cross_entropy(low.double(), targets, weights, smoothing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, weight = cross_entropy(low, targets, weights, smoothing)
    assert loss_sum.dtype == weight.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert weight.item() == expected_weight.item()


@pytest.mark.parametrize(("weights", "smoothing"), SETTINGS)
def test_no_value_is_read_on_the_host(weights, smoothing):
    """A tensor on the meta device has no values: whatever would wait for one raises."""
    logits, targets = (tensor.to("meta") for tensor in _window(0))
    on_meta = None if weights is None else weights.to("meta")
    for wanted in (targets, torch.empty(37, 4, device="meta")):
        loss_sum, weight = cross_entropy(logits, wanted, on_meta, smoothing)
        assert loss_sum.device.type == weight.device.type == "meta"
        assert loss_sum.shape == weight.shape == ()


def test_the_weight_of_plain_items_is_their_number():
    logits, targets = _window(0)
    assert cross_entropy(logits, targets)[1].item() == 37
    assert cross_entropy(logits, targets, WEIGHTS)[1].item() == WEIGHTS[targets].sum().item()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_divergence_from_answers_is_kl_and_has_the_gradient_of_lwf(temperature: float) -> None:
    """Against numpy's sum over classes, and against the cross entropy of soft answers (Li and Hoiem 2018)."""
    generator = torch.Generator().manual_seed(0)
    answers = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    logits = (3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    found = objectives.divergence(logits, answers, temperature)
    p, q = ((z.detach() / temperature).softmax(1).numpy() for z in (answers, logits))
    assert found.item() == pytest.approx(temperature**2 * (p * np.log(p / q)).sum(), rel=1e-9)
    (gradient,) = torch.autograd.grad(found, logits)
    soft = -(torch.from_numpy(p) * (logits / temperature).log_softmax(1)).sum()
    torch.testing.assert_close(gradient, temperature**2 * torch.autograd.grad(soft, logits)[0])
    assert float(objectives.divergence(answers, answers, temperature)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_of_yes_or_no_is_kl_of_bernoulli(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    answers, logits = (3 * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)).unbind(0)
    p, q = ((z / temperature).sigmoid().numpy() for z in (answers, logits))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum() * temperature**2
    assert float(objectives.binary_divergence(logits, answers, temperature)) == pytest.approx(expected)


def _image_text_by_hand(logits: np.ndarray, targets: np.ndarray) -> float:
    """CLIP's loss in its pseudocode's words: for every image its text, and for every text its image."""
    similarity = np.array([[row[target] for target in targets] for row in logits])
    total = 0.0
    for i in range(len(targets)):
        total += np.log(np.exp(similarity[i]).sum()) - similarity[i, i]
        total += np.log(np.exp(similarity[:, i]).sum()) - similarity[i, i]
    return total / 2


def _sigmoid_by_hand(logits: np.ndarray, targets: np.ndarray) -> float:
    pairs = [(i, j) for i in range(len(targets)) for j in range(len(targets))]
    signs = {(i, j): 1 if targets[i] == targets[j] else -1 for i, j in pairs}
    return sum(np.log1p(np.exp(-signs[i, j] * logits[i, targets[j]])) for i, j in pairs)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (objectives.image_text_softmax, _image_text_by_hand),
        (objectives.image_text_sigmoid, _sigmoid_by_hand),
    ],
)
def test_images_against_the_texts_of_a_batch(loss, by_hand):
    for seed in range(3):
        logits, targets = _window(seed)
        found, weight = loss(logits, targets)
        assert found.dtype == torch.float64 and weight == len(targets)
        assert found.item() == pytest.approx(by_hand(logits.numpy(), targets.numpy()), rel=1e-12)
    logits = torch.randn(5, 5, dtype=torch.float64)  # every class once: what transformers computes
    if loss is objectives.image_text_softmax:
        clip = pytest.importorskip("transformers.models.clip.modeling_clip")
        expected = clip.image_text_contrastive_loss(logits.T)
        assert loss(logits, torch.arange(5))[0].item() / 5 == pytest.approx(expected.item(), rel=1e-12)
    assert loss(logits.bfloat16(), torch.arange(5))[0].dtype == torch.float32


def test_several_teachers_answer_with_the_mean_of_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    each = [torch.from_numpy(rng.normal(0, 3, (4, 5))) for _ in range(3)]
    found = mean_answers(each, 2.5)
    expected = sum((one / 2.5).softmax(1) for one in each) / 3
    torch.testing.assert_close((found / 2.5).softmax(1), expected)
    labels = mean_answers(each, 2.5, multi_label=True)
    torch.testing.assert_close((labels / 2.5).sigmoid(), sum((one / 2.5).sigmoid() for one in each) / 3)
    assert mean_answers(each[:1], 2.5) is each[0]
