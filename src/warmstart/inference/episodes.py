"""One episode through a model: learn from the support images, answer for the query images.

Shapes: W classes, S support and Q query images of each; a batch is the W * S support images, class by class, then the
W * Q query images, class by class. K outputs of the model, one for each place in the episode (K = W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from warmstart.config.meta_section import MetaConfig
from warmstart.inference.separation import vectors
from warmstart.tasks.episodes import Adapted, labels_of
from warmstart.tasks.objectives import cross_entropy

Fast = dict[str, Tensor]  # weights that an episode has moved, by their names in the part


class EpisodePart(nn.Module):
    """The part of a model that trains, called with one whole episode; it gives the query images' logits (W * Q, W).

    `head` is the classifier, `adapted` are the parameters that the inner steps move (none for ProtoNet). `live` are the
    BatchNorm layers that take the statistics of the images they see. In evaluation mode nothing of the part changes,
    their running statistics neither, and the logits have no gradient.
    """

    def __init__(
        self,
        part: nn.Module,
        head: nn.Module,
        meta: MetaConfig,
        adapted: Sequence[nn.Parameter] = (),
        live: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.part, self.meta, self._live = part, meta, tuple(live)
        self._head = [head]  # in a list: it is a module of the part already
        chosen = set(map(id, adapted))
        self._names = [name for name, tensor in part.named_parameters() if id(tensor) in chosen]
        assert len(self._names) == len(adapted), "a weight that adapts lies outside the part"
        norms = set(map(id, live))
        self._norms = [name for name, module in part.named_modules() if id(module) in norms]

    def forward(self, images: Tensor) -> Tensor | Adapted:
        if self.training:
            return self._episode(images)
        with torch.inference_mode(False), torch.enable_grad():
            for norm in self._live:
                norm.train()
            logits = self._episode(
                images.clone(), is_measured=True
            )  # a copy: no gradient through inference tensors
            for norm in self._live:
                norm.eval()
        return (logits.logits if isinstance(logits, Adapted) else logits).detach()

    def _episode(self, images: Tensor, is_measured: bool = False) -> Tensor | Adapted:
        num = self.meta.way * self.meta.shot
        assert len(images) == self.meta.num_rows, f"{len(images)} images are no episode"
        buffers = self._own_statistics() if is_measured else {}
        if self.meta.method == "protonet":
            with torch.set_grad_enabled(not is_measured):
                embeddings = self._embed(images, buffers)
            return prototype_logits(embeddings[:num], embeddings[num:], self.meta.way) / self.meta.temperature
        if self.meta.method == "reptile" and not is_measured:
            return self._pulled(images, num)
        is_second = self.meta.second_order and not is_measured
        labels = labels_of(self.meta.way, self.meta.shot, images.device)
        support = [(images[:num], labels)] * self.meta.inner_steps
        fast = self._fast(is_detached=is_measured)
        fast = self._descend(fast, support, buffers, is_second)
        with torch.set_grad_enabled(not is_measured):
            return self._call(fast | buffers, images[num:])

    def _pulled(self, images: Tensor, num: int) -> Adapted:
        """Reptile (Nichol et al. 2018, algorithm 1): descend on the whole episode, then pull the weights that way.

        Each inner step has a part of the images of its own, with every class in it. The gradient of
        sum(w * stop(w - w')) is w - w', so that a step of plain SGD at rate e is the paper's w + e (w' - w).
        """
        meta = self.meta
        labels = torch.cat([labels_of(meta.way, n, images.device) for n in (meta.shot, meta.query)])
        parts = min(meta.inner_steps, meta.shot + meta.query)
        order = labels.argsort(
            stable=True
        )  # class by class, and each has as many images as there are parts, or more
        rows = [order[k % parts :: parts] for k in range(meta.inner_steps)]
        given = [(images[row], labels[row]) for row in rows]
        fast = self._descend(self._fast(is_detached=True), given, {}, is_second=False)
        with torch.no_grad():
            logits = self._call(fast, images[num:])
        own = dict(self.part.named_parameters())
        pull = torch.stack(
            [(own[name] * (own[name] - fast[name]).detach()).sum() for name in self._names]
        ).sum()
        return Adapted(logits, pull)

    def _fast(self, is_detached: bool) -> Fast:
        """The weights as an episode finds them; detached: its steps leave no gradient in them."""
        own = dict(self.part.named_parameters())
        found: Fast = {name: own[name] for name in self._names}
        return {name: w.detach().requires_grad_() for name, w in found.items()} if is_detached else found

    def _descend(
        self,
        fast: Fast,
        given: Sequence[tuple[Tensor, Tensor]],
        buffers: Mapping[str, Tensor],
        is_second: bool,
    ) -> Fast:
        """Gradient descent at the inner rate, a step on each (images, labels); cross entropy (Finn et al. 2017, eq. 1).

        Second order keeps the graph of the steps. Else their gradients are constants, so that the derivative of the
        result by the weights is the identity (first-order MAML, section 5.2 there).
        """
        with (
            sdpa_kernel(SDPBackend.MATH) if is_second else nullcontext()
        ):  # fused attention has no second derivative
            for images, labels in given:
                loss_sum, num = cross_entropy(self._call(fast | dict(buffers), images), labels)
                # Zeros for weights that the model does not use.
                steps = torch.autograd.grad(
                    loss_sum / num,
                    list(fast.values()),
                    create_graph=is_second,
                    allow_unused=True,
                    materialize_grads=True,
                )
                fast = {
                    name: weight - self.meta.inner_lr * step
                    for (name, weight), step in zip(fast.items(), steps, strict=True)
                }
        return fast

    def _call(self, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(self.part, dict(tensors), (images,))

    def _embed(self, images: Tensor, buffers: Mapping[str, Tensor]) -> Tensor:
        """(N, D): what goes into the classifier."""
        found: list[Tensor] = []

        def look(_: nn.Module, arguments: tuple[Any, ...], __: Any) -> None:
            found.append(arguments[0])

        # After the layer: what comes before it may still be replaced in front of it (inference/cut.py).
        hook = self._head[0].register_forward_hook(look)
        try:
            self._call(buffers, images)
        finally:
            hook.remove()
        assert len(found) == 1, f"the classifier was called {len(found)} times"
        return vectors(found[0])

    def _own_statistics(self) -> dict[str, Tensor]:
        """Copies of the running statistics, which a pass in training mode moves in place of the layers' own."""
        buffers = dict(self.part.named_buffers())
        return {
            f"{norm}.{name}": buffers[f"{norm}.{name}"].clone()
            for norm in self._norms
            for name, _ in self.part.get_submodule(norm).named_buffers()
        }


def prototype_logits(support: Tensor, query: Tensor, way: int) -> Tensor:
    """(W * Q, W): minus the squared Euclidean distances of the queries (W * Q, D) to the means of the classes of the
    support (W * S, D) (Snell et al. 2017, equations 1 and 2), in float32 at least."""
    exact = torch.promote_types(support.dtype, torch.float32)
    prototypes = support.to(exact).unflatten(0, (way, -1)).mean(dim=1)
    return -(query.to(exact)[:, None] - prototypes[None]).square().sum(dim=2)
