"""One optimizer step of every method in float64, against the papers' algorithms written out on a plain network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.config.meta_section import MetaConfig
from warmstart.data.batches import Batch
from warmstart.engine.step import Arithmetic, train_window
from warmstart.errors import UserError
from warmstart.inference.episodes import EpisodePart, prototype_logits
from warmstart.inference.memory import AtOnce
from warmstart.inference.predictor import predict_outputs
from warmstart.tasks.episodes import Episodes

WAY, SHOT, QUERY, STEPS, RATE = 4, 2, 4, 3, 0.3  # 2 x 16 answers: their number divides float64 exactly
OUTER = 0.5
META = {"way": WAY, "shot": SHOT, "query": QUERY, "inner_steps": STEPS, "inner_lr": RATE}
S_LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
Q_LABELS = torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4)
Weights = list[Tensor]


class Net(nn.Module):
    """Two layers; `logits` is the same network written out, as a function of its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, WAY)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def logits(weights: Weights, x: Tensor) -> Tensor:
    w1, b1, w2, b2 = weights
    return torch.tanh(x @ w1.T + b1) @ w2.T + b2


def loss_of(weights: Weights, x: Tensor, labels: Tensor) -> Tensor:
    z = logits(weights, x)
    return (torch.logsumexp(z, dim=1) - z[torch.arange(len(z)), labels]).mean()


def fresh(net: nn.Module) -> Weights:
    return [p.detach().clone().requires_grad_() for p in net.parameters()]


def episode_batches() -> list[Batch]:
    rng = np.random.default_rng(1)
    num = WAY * (SHOT + QUERY)
    return [
        Batch(rng.normal(size=(num, 5)), np.zeros(num, np.int64), np.zeros(num, np.uint64), np.arange(num))
        for _ in range(2)
    ]


def to_double(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)


def stepped(net: Net, **settings: Any) -> tuple[Weights, float]:
    """The weights after one step of plain SGD on a window of two episodes, and its loss."""
    meta = MetaConfig(**{**META, **settings})
    adapted = {"protonet": [], "anil": [*net.head.parameters()]}.get(meta.method, [*net.parameters()])
    part = EpisodePart(net, net.head, meta, adapted).train()
    optimizer = torch.optim.SGD(net.parameters(), OUTER)
    task = Episodes(meta.places, QUERY)
    arithmetic = Arithmetic(whole=meta.num_rows)
    result = train_window(part, episode_batches(), to_double, task.objective, optimizer, arithmetic)
    return [p.detach() for p in net.parameters()], float(result.loss_sum / result.weight)


def written_out(net: Net, episode: Callable[[Weights, Tensor, Tensor], tuple[Tensor, Weights]]) -> Any:
    """As `stepped`: the mean of the episodes' gradients, each by `episode(weights, support, query)`."""
    weights, losses, gradients = fresh(net), [], []
    for batch in episode_batches():
        x = torch.from_numpy(batch.images)
        loss, gradient = episode(weights, x[: WAY * SHOT], x[WAY * SHOT :])
        losses.append(float(loss.detach()))
        gradients.append(gradient)
    means = [sum(parts) / len(gradients) for parts in zip(*gradients, strict=True)]
    return [(w - OUTER * g).detach() for w, g in zip(weights, means, strict=True)], np.mean(losses)


def check(found: tuple[Weights, float], expected: tuple[Weights, float]) -> None:
    assert found[1] == pytest.approx(expected[1], rel=1e-6)  # rows of metrics are float32
    for mine, theirs in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def descended(weights: Weights, support: Tensor, moved: list[int], second: bool) -> Weights:
    fast = list(weights)
    for _ in range(STEPS):
        steps = torch.autograd.grad(
            loss_of(fast, support, S_LABELS), [fast[i] for i in moved], create_graph=second, retain_graph=True
        )
        for i, step in zip(moved, steps, strict=True):
            fast[i] = fast[i] - RATE * step
    return fast


def gradient_through(moved: list[int]) -> Callable[..., tuple[Tensor, Weights]]:
    """MAML with the whole derivative (Finn et al. 2017, algorithm 2); ANIL moves the head alone (Raghu et al. 2020)."""

    def episode(weights: Weights, support: Tensor, query: Tensor) -> tuple[Tensor, Weights]:
        loss = loss_of(descended(weights, support, moved, second=True), query, Q_LABELS)
        return loss, list(torch.autograd.grad(loss, weights))

    return episode


def gradient_at_the_end(moved: list[int]) -> Callable[..., tuple[Tensor, Weights]]:
    """First order: the gradient of the query loss where the inner steps end, taken for that where they begin."""

    def episode(weights: Weights, support: Tensor, query: Tensor) -> tuple[Tensor, Weights]:
        ended = [w.detach().requires_grad_() for w in descended(weights, support, moved, second=False)]
        loss = loss_of(ended, query, Q_LABELS)
        return loss, list(torch.autograd.grad(loss, ended))

    return episode


@pytest.mark.parametrize(("method", "moved"), [("maml", [0, 1, 2, 3]), ("anil", [2, 3])])
def test_maml_and_anil_of_both_orders(method: str, moved: list[int]) -> None:
    second = stepped(Net(), method=method, second_order=True)
    first = stepped(Net(), method=method)
    check(second, written_out(Net(), gradient_through(moved)))
    check(first, written_out(Net(), gradient_at_the_end(moved)))
    assert not torch.allclose(first[0][0], second[0][0], rtol=1e-3)


def test_the_second_order_gradient_is_the_slope_of_the_loss_after_adaptation() -> None:
    """Finite differences know nothing of graphs."""
    net, h = Net(), 1e-5
    before = fresh(net)
    after, _ = stepped(net, method="maml", second_order=True)
    gradient = [(b.detach() - a) / OUTER for a, b in zip(after, before, strict=True)]
    torch.manual_seed(0)
    direction = [torch.randn_like(w) for w in before]

    def loss_at(shift: float) -> float:
        moved = [(w + shift * d).detach().requires_grad_() for w, d in zip(before, direction, strict=True)]
        losses = []
        for batch in episode_batches():
            x = torch.from_numpy(batch.images)
            fast = descended(moved, x[: WAY * SHOT], [0, 1, 2, 3], second=False)
            losses.append(float(loss_of(fast, x[WAY * SHOT :], Q_LABELS).detach()))
        return float(np.mean(losses))

    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    assert slope == pytest.approx((loss_at(h) - loss_at(-h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_protonet_is_the_papers_algorithm(temperature: float) -> None:
    """Snell et al. 2017, algorithm 1, query by query; the head takes no part. Its temperature is 1."""

    def episode(weights: Weights, support: Tensor, query: Tensor) -> tuple[Tensor, Weights]:
        def f(x: Tensor) -> Tensor:
            return torch.tanh(x @ weights[0].T + weights[1])

        centres = [sum(f(x) for x in support[SHOT * k : SHOT * (k + 1)]) / SHOT for k in range(WAY)]
        loss: Any = 0
        for x, label in zip(query, Q_LABELS.tolist(), strict=True):
            distances = torch.stack([((f(x) - c) ** 2).sum() / temperature for c in centres])
            loss = loss + distances[label] + torch.log(torch.exp(-distances).sum())
        loss = loss / len(query)
        return loss, [
            *torch.autograd.grad(loss, weights[:2]),
            torch.zeros_like(weights[2]),
            torch.zeros_like(weights[3]),
        ]

    check(stepped(Net(), method="protonet", temperature=temperature), written_out(Net(), episode))


def test_reptile_is_the_papers_algorithm() -> None:
    """Nichol et al. 2018, algorithm 2: w + e * mean(w' - w), w' by SGD on parts of the episode's images."""

    def episode(weights: Weights, support: Tensor, query: Tensor) -> tuple[Tensor, Weights]:
        x, labels = torch.cat([support, query]), torch.cat([S_LABELS, Q_LABELS])
        copied = [w.detach().clone().requires_grad_() for w in weights]
        inner = torch.optim.SGD(copied, RATE)
        by_class = sorted(range(len(labels)), key=lambda row: int(labels[row]))
        for k in range(STEPS):
            inner.zero_grad()
            rows = by_class[k::STEPS]
            assert {*labels[rows].tolist()} == {*labels.tolist()}, "every class is in every part"
            loss_of(copied, x[rows], labels[rows]).backward()
            inner.step()
        loss = loss_of(copied, query, Q_LABELS)
        return loss, [(w - c).detach() for w, c in zip(weights, copied, strict=True)]

    check(stepped(Net(), method="reptile"), written_out(Net(), episode))


@pytest.mark.parametrize("method", ["maml", "reptile"])
def test_measured_a_model_adapts_to_the_support_images_and_is_left_as_it_was(method: str) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    meta = MetaConfig(**META, method=method)
    outputs = predict_outputs(
        EpisodePart(net, net.head, meta, [*net.parameters()]), episode_batches(), to_double
    )
    for number, batch in enumerate(episode_batches()):
        x = torch.from_numpy(batch.images)
        fast = descended(fresh(net), x[: WAY * SHOT], [0, 1, 2, 3], second=False)
        expected = logits(fast, x[WAY * SHOT :]).detach().float().numpy()
        np.testing.assert_allclose(outputs[16 * number : 16 * number + 16], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_batch_statistics_are_those_of_the_images_that_go_through_together_and_leave_no_trace() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5, affine=False).double()
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(5, WAY).double())
    batch = episode_batches()[0]
    x = torch.from_numpy(batch.images)
    part = EpisodePart(net, net[2], MetaConfig(**META, method="protonet"), (), [norm])
    outputs = predict_outputs(part, [batch], to_double)
    z = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    expected = prototype_logits(z[: WAY * SHOT], z[WAY * SHOT :], WAY)
    np.testing.assert_allclose(outputs, expected.float().numpy(), rtol=1e-5)
    assert float(norm.running_mean.abs().sum()) == 0 and int(norm.num_batches_tracked) == 0
    held = EpisodePart(net, net[2], MetaConfig(**META, method="protonet"))
    plain = prototype_logits(x[: WAY * SHOT], x[WAY * SHOT :], WAY)
    np.testing.assert_allclose(predict_outputs(held, [batch], to_double), plain.float().numpy(), rtol=1e-4)


def test_second_order_goes_through_attention() -> None:
    """Fused attention has no second derivative, and would end the run."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(5, 15), nn.Linear(5, WAY)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.inner(x[:, None, None, :].expand(-1, 1, 4, 5)).chunk(3, dim=-1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(dim=(1, 2)))

    net = Attending()
    part = EpisodePart(
        net, net.head, MetaConfig(**META, method="maml", second_order=True), [*net.parameters()]
    )
    part(torch.from_numpy(episode_batches()[0].images).float()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("measured", [True, False])
def test_an_episode_is_never_divided_where_memory_ends(measured: bool) -> None:
    class Large(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    net, meta = Large(), MetaConfig(**META, method="protonet")
    part = EpisodePart(net, net.head, meta).train()
    with pytest.raises(
        UserError, match=r"out of memory with 24 images[^$]*an episode as a whole[^$]*--meta.query"
    ):
        if measured:
            predict_outputs(part, episode_batches(), to_double, at_once=AtOnce(fewest=meta.num_rows))
        else:
            optimizer = torch.optim.SGD(net.parameters(), OUTER)
            task = Episodes(meta.places, QUERY)
            train_window(
                part, episode_batches(), to_double, task.objective, optimizer, Arithmetic(whole=meta.num_rows)
            )
