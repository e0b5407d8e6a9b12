"""Promise 4: a window weighs items, however it is cut. Every reference here is computed in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from warmstart.adapt.apply import apply_stage, set_modes
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig
from warmstart.data.batches import Batch
from warmstart.data.order import epoch_windows
from warmstart.engine.step import Arithmetic, make_scaler, train_window
from warmstart.inference.inputs import InputBuffer
from warmstart.models.build import build
from warmstart.records import Preprocessing
from warmstart.tasks.classification import Classification

PIXELS = Preprocessing((16, 16), (0.4,), (0.3,))
CLASSES = ("ant", "bee", "cat")
PLAIN = Classification(CLASSES)
WEIGHTED = Classification(CLASSES, label_smoothing=0.1, class_weights=(2.0, 0.5, 1.0))


class Double(nn.Module):
    """Computes in float64 whatever it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.double())


def norm_free() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 49, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    )


def frozen_norms() -> nn.Module:
    built = build(
        ModelConfig(name="builtin:fashion_cnn", weights="none", dropout=0),
        {"image_size": (16, 16)},
        CLASSES,
        0,
    )
    sizes = {name: tuple(p.shape) for name, p in built.module.named_parameters()}
    plan = make_plan(built.blocks, sizes, AdaptConfig(freeze_bn=True), OptimConfig())
    apply_stage(built.module, plan, 0)
    set_modes(built.module, plan, built.blocks, 0)
    return built.module


def images(num: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 16, 16, 1), dtype=np.uint8), rng.integers(0, 3, num)


def batch(pixels: np.ndarray, targets: np.ndarray) -> Batch:
    return Batch(pixels, targets, np.arange(len(targets), dtype=np.uint64), np.arange(len(targets)))


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)


def take(
    module: nn.Module,
    cut: list[np.ndarray],
    data: tuple[np.ndarray, np.ndarray],
    task: Classification = PLAIN,
    optimizer: torch.optim.Optimizer | None = None,
    arithmetic: Arithmetic = Arithmetic(),  # noqa: B008
):
    batches = (batch(data[0][part], data[1][part]) for part in cut)
    inputs = InputBuffer(PIXELS, torch.device("cpu"), False)
    return train_window(module, batches, inputs, task.objective, optimizer or sgd(module), arithmetic)


def gradient(module: nn.Module, data: tuple[np.ndarray, np.ndarray], task: Classification) -> list[Tensor]:
    """Of torch's own mean loss over the whole window."""
    module = copy.deepcopy(module)
    pixels = torch.from_numpy(data[0]).permute(0, 3, 1, 2).float().div(255).sub(0.4).div(0.3)
    weights = None if task.class_weights is None else torch.tensor(task.class_weights, dtype=torch.float64)
    outputs = module(pixels)
    loss = nn.functional.cross_entropy(
        outputs, torch.from_numpy(data[1]), weights, label_smoothing=task.label_smoothing
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("make", [norm_free, frozen_norms])
@pytest.mark.parametrize("task", [PLAIN, WEIGHTED])
def test_four_times_eight_is_one_times_thirty_two(
    make: Callable[[], nn.Module], task: Classification
) -> None:
    whole, parts = Double(make()), Double(make())
    once, cut = (
        torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(parts.parameters(), lr=0.1, momentum=0.9),
    )
    for step in range(4):
        data = images(32, seed=step)
        one = take(whole, [np.arange(32)], data, task, once)
        four = take(parts, np.array_split(np.arange(32), 4), data, task, cut)
        assert float(four.loss_sum) == pytest.approx(float(one.loss_sum), rel=1e-6)
        assert float(four.weight) == float(one.weight)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not torch.equal(next(whole.parameters()), next(Double(make()).parameters()))


@pytest.mark.parametrize("task", [PLAIN, WEIGHTED])
def test_the_gradient_is_that_of_torchs_mean_loss(task: Classification) -> None:
    module, data = Double(norm_free()), images(32)
    expected = gradient(module, data, task)
    before = [p.detach().clone() for p in module.parameters()]
    take(module, np.array_split(np.arange(32), [3, 4, 20]), data, task)  # cut unevenly
    for old, new, grad in zip(before, module.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, grad, rtol=1e-6, atol=1e-9)


def test_a_short_last_window_is_not_discounted() -> None:
    """The trap: dividing a last window of 3 micro-batches by the usual 4 makes its gradient too small."""
    order = np.arange(44)
    windows = epoch_windows(order, batch_size=8, accumulate=4)
    assert [sum(map(len, window)) for window in windows] == [32, 12]
    module, data = Double(norm_free()), images(44)
    last = windows[-1]
    expected = gradient(module, (data[0][32:], data[1][32:]), PLAIN)
    before = [p.detach().clone() for p in module.parameters()]
    result = take(module, last, data)
    assert float(result.weight) == 12
    for old, new, grad in zip(before, module.parameters(), expected, strict=True):
        torch.testing.assert_close((old - new) / 0.1, grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_window_of_no_weight_changes_nothing(smoothing: float) -> None:
    task = Classification(CLASSES, smoothing, (0.0, 1.0, 1.0))
    module = norm_free()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    pixels, targets = images(8)
    arithmetic = Arithmetic(may_weigh_nothing=True)
    take(module, [np.arange(8)], (pixels, np.ones_like(targets)), task, optimizer, arithmetic)  # momentum
    before = [p.detach().clone() for p in module.parameters()]
    result = take(
        module, np.array_split(np.arange(8), 2), (pixels, np.zeros_like(targets)), task, optimizer, arithmetic
    )
    assert [float(value.sum()) for value in result] == [0.0, 0.0, 0.0, 0.0]
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    take(module, [np.arange(8)], (pixels, np.ones_like(targets)), task, optimizer, arithmetic)
    assert all(p.isfinite().all() for p in module.parameters())
    assert not torch.equal(before[0], next(module.parameters()))


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_is_torchs_on_the_gradient_of_the_whole_window(clip: float) -> None:
    module, data = Double(norm_free()), images(32)
    reference = copy.deepcopy(module)
    for parameter, grad in zip(reference.parameters(), gradient(reference, data, PLAIN), strict=True):
        parameter.grad = grad
    norm = nn.utils.clip_grad_norm_(reference.parameters(), clip)
    before = [p.detach().clone() for p in module.parameters()]
    result = take(module, np.array_split(np.arange(32), 4), data, arithmetic=Arithmetic(clip=clip))
    assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-6)  # as it was before clipping
    for old, new, parameter in zip(before, module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close((old - new) / 0.1, parameter.grad, rtol=1e-5, atol=1e-12)


def test_the_last_windows_gradient_is_not_carried_into_the_next() -> None:
    module, data = Double(norm_free()), images(16)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    first = take(module, [np.arange(16)], data, optimizer=optimizer)
    second = take(module, [np.arange(16)], data, optimizer=optimizer)
    assert float(first.grad_norm) == float(second.grad_norm) > 0


def test_an_image_left_alone_by_unreadable_ones_does_not_reach_norms(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """BatchNorm1d refuses a single image, and BatchNorm2d learns from one what is not so."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    other, data = copy.deepcopy(module), images(5)
    four, one = np.arange(4), np.array([4])
    result = take(module, [four, one], data, arithmetic=Arithmetic(statistics=statistics(module)))
    expected = take(other, [four], data, arithmetic=Arithmetic(statistics=statistics(other)))
    assert float(result.weight) == float(expected.weight) == 4
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert "one image is left of a micro-batch" in caplog.text
    before = copy.deepcopy(module.state_dict())
    assert float(take(module, [one], data, arithmetic=Arithmetic(statistics=statistics(module))).weight) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def statistics(module: nn.Module) -> tuple[Tensor, ...]:
    return tuple(buffer for name, buffer in module.named_buffers() if "running" in name)


@pytest.mark.parametrize("precision", [None, torch.float16])
def test_windows_whose_images_all_went_missing_change_nothing(precision: torch.dtype | None) -> None:
    """Nor do they stand in the way of the next: fp16's scaler must not be asked to unscale nothing."""
    module, data = norm_free(), images(8)
    scaler = make_scaler(precision, torch.device("cpu"))
    optimizer, arithmetic = sgd(module), Arithmetic(precision, clip=1.0, scaler=scaler)
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):
        result = take(module, [np.arange(0), np.arange(0)], data, optimizer=optimizer, arithmetic=arithmetic)
        assert [float(value.sum()) for value in result] == [0, 0, 0, 0]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    result = take(module, [np.arange(8)], data, optimizer=optimizer, arithmetic=arithmetic)
    assert float(result.weight) == 8 and not torch.equal(before["0.weight"], module.state_dict()["0.weight"])


def test_only_fp16_scales_its_gradients() -> None:
    cpu = torch.device("cpu")
    assert make_scaler(None, cpu) is None and make_scaler(torch.bfloat16, cpu) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_follows_float32_and_leaves_out_steps_that_overflow() -> None:
    cuda = torch.device("cuda")
    exact, half = norm_free().to(cuda), norm_free().to(cuda)
    scaler = make_scaler(torch.float16, cuda)
    assert scaler is not None
    inputs = InputBuffer(PIXELS, cuda, False)
    for step in range(20):
        data = batch(*images(32, seed=step))
        train_window(exact, [data], inputs, PLAIN.objective, sgd(exact), Arithmetic())
        train_window(
            half, [data], inputs, PLAIN.objective, sgd(half), Arithmetic(torch.float16, scaler=scaler)
        )
    for a, b in zip(exact.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    before = [p.detach().clone() for p in half.parameters()]
    train_window(half, [data], inputs, PLAIN.objective, sgd(half), Arithmetic(torch.float16, scaler=scaler))
    assert all(torch.equal(a, b) for a, b in zip(before, half.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**39
