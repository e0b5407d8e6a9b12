"""The classifier for new classes: rows of classes with the same name are kept, the others start fresh.

Shapes: K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.margin import CosineClassifier, named
from warmstart.records import Margin

Classifier = nn.Linear | nn.Conv2d | CosineClassifier
_FORM = ("in_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")  # of a convolution


@dataclass(frozen=True)
class HeadChange:
    """What became of the classifier, and why. The names say whose weights were kept, and whose are new."""

    kind: Literal["kept", "new", "mixed"]
    kept: tuple[str, ...]
    new: tuple[str, ...]
    reason: str
    by_order: bool = False  # the weights name no classes: outputs were taken in the order of the data's


class PairLinear(nn.Linear):
    """A linear layer that has one row for two classes: (N, D) -> (N, 2), which are 0 and z.

    Their softmax is the sigmoid of z and their cross entropy the binary one, so that a file with one logit computes,
    trains and is saved as where it comes from. With more classes it is like any other.
    """

    def __init__(self, num_features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__(num_features, num_classes if num_classes > 2 else 1, bias)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return torch.cat([torch.zeros_like(z), z], dim=-1) if self.out_features == 1 else z


def num_outputs(module: nn.Module, head: str) -> int:
    """Of the classifier at path `head`: as many as its rows, or the two of a `PairLinear` with one."""
    layer = _classifier(module, head)
    return 2 if is_pair(layer) else layer.weight.shape[0]


def is_pair(layer: nn.Module) -> bool:
    """Whether one row of this classifier stands for two classes."""
    return isinstance(layer, PairLinear) and layer.out_features == 1


def fit_head(
    module: nn.Module,
    head: str,
    source_classes: Sequence[str] | None,
    target_classes: Sequence[str],
    seed: int,
) -> HeadChange:
    """Make the layer at path `head` of a loaded model classify `target_classes`; changes `module` in place.

    `source_classes` are the names of the layer's outputs, None if nobody knows them, empty if its rows
    mean nothing. UserError: the layer is neither linear nor a convolution.
    """
    old = _classifier(module, head)
    num_rows, targets = num_outputs(module, head), tuple(target_classes)
    if source_classes is None:
        if num_rows == len(targets):
            reason = f"the weights name no classes; {num_rows} outputs for {len(targets)} classes"
            return HeadChange("kept", targets, (), reason, by_order=True)
        _put(module, head, _fresh(old, len(targets), seed))
        return HeadChange(
            "new", (), targets, f"{num_rows} outputs, without names, for {len(targets)} classes"
        )
    assert len(source_classes) in (0, num_rows), f"{len(source_classes)} names for {num_rows} outputs"
    if tuple(source_classes) == targets:
        return HeadChange("kept", targets, (), "the same classes in the same order")
    row_of = {name: row for row, name in enumerate(source_classes)}
    pairs = [(row, row_of[name]) for row, name in enumerate(targets) if name in row_of]
    replacement = _fresh(old, len(targets), seed)
    if is_pair(replacement) and len(pairs) < 2:
        pairs = []  # its one row is the difference of two classes
    _copy_rows(old, replacement, pairs)
    _put(module, head, replacement)
    kept = tuple(targets[row] for row, _ in pairs)
    new = tuple(name for name in targets if name not in kept)
    reason = (
        f"{len(kept)} rows kept by name, {len(new)} made anew, {num_rows - len(kept)} of the source dropped"
    )
    if not source_classes:
        reason = "the weights hold no classifier"
    return HeadChange("new" if not kept else "mixed" if new else "kept", kept, new, reason)


def margin_of(module: nn.Module, head: str) -> Margin | None:
    """That of the layer at path `head`; None: it is linear."""
    layer = module.get_submodule(head)
    return layer.margin if isinstance(layer, CosineClassifier) else None


def fit_kind(module: nn.Module, head: str, margin: Margin | None, seed: int, has_pair: bool = False) -> str:
    """Make the layer at path `head` the margin head that is asked for, or linear for None; changes `module` in place.

    What is of that kind already keeps its weights, and takes the new values. Otherwise every row is drawn anew from
    `seed`, and the answer says so in words; else it is empty. `has_pair`: the architecture's own linear classifier is a
    `PairLinear`, which a margin head in its place does not tell.
    UserError: a margin head in place of a convolution.
    """
    old = _classifier(module, head)
    own = margin_of(module, head)
    if (own is None) == (margin is None) and (own is None or margin is None or own.method == margin.method):
        if isinstance(old, CosineClassifier) and margin is not None:
            old.margin = margin
        return ""
    if isinstance(old, nn.Conv2d):
        raise UserError(
            f"--margin-method: the classifier {head!r} is a convolution",
            "a linear layer, in front of which every image is one vector",
            "choose another --model, or --margin-method none",
        )
    num = num_outputs(module, head)
    with torch.device("meta"):
        form: Classifier
        if margin is None:
            form = (PairLinear if has_pair else nn.Linear)(old.in_features, num)
        else:
            form = CosineClassifier(old.in_features, num, margin)
    form = form.to(old.weight.dtype).train(old.training)
    _put(module, head, _fresh(form, num, seed, old.weight.device))
    return f"the weights have {named(own)}, and {named(margin)} is asked for: initialised anew"


def _classifier(module: nn.Module, head: str) -> Classifier:
    layer = module.get_submodule(head)
    if isinstance(layer, (nn.Linear, CosineClassifier)) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1
    ):
        return layer
    raise UserError(
        f"the classifier {head!r} is a {type(layer).__name__}, which cannot be given new classes",
        "a linear layer or a convolution",
        "choose another --model",
    )


def _fresh(old: Classifier, num_rows: int, seed: int, device: torch.device | None = None) -> Classifier:
    """A layer like `old` with `num_rows` outputs, initialised as nn.Linear does, from `seed` alone."""
    with torch.device("meta"):  # built without touching the global generator
        bias = old.bias is not None
        layer: Classifier
        if isinstance(old, PairLinear):
            layer = PairLinear(old.in_features, num_rows, bias)
        elif isinstance(old, CosineClassifier):
            layer = CosineClassifier(old.in_features, num_rows, old.margin)
        elif isinstance(old, nn.Linear):
            layer = nn.Linear(old.in_features, num_rows, bias=bias)
        else:
            same: dict[str, Any] = {key: getattr(old, key) for key in _FORM}
            layer = nn.Conv2d(out_channels=num_rows, bias=bias, **same)
    layer = layer.to_empty(device="cpu").to(old.weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(old.weight[0].numel())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer.to(device or old.weight.device).train(old.training)


def _copy_rows(old: Classifier, new: Classifier, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy (new row, old row) pairs; the one row of a `PairLinear` stands for two, of which the first is 0."""
    with torch.no_grad():
        for mine, theirs in ((new.weight, old.weight), (new.bias, old.bias)):
            if mine is None or theirs is None:
                continue
            rows = torch.cat([torch.zeros_like(theirs), theirs]) if is_pair(old) else theirs
            if is_pair(new):
                source = dict(pairs)
                if source:
                    mine[0] = rows[source[1]] - rows[source[0]]
                continue
            for new_row, old_row in pairs:
                mine[new_row] = rows[old_row]


def _put(module: nn.Module, head: str, layer: Classifier) -> None:
    """Set the layer at its path, and the counts that timm keeps on the model and the head around it."""
    num_rows = _classifier(module, head).weight.shape[0]
    parent_path, _, name = head.rpartition(".")
    parents = [module]
    for part in filter(None, parent_path.split(".")):
        parents.append(parents[-1].get_submodule(part))
    setattr(parents[-1], name, layer)
    for parent in parents:
        if getattr(parent, "num_classes", None) == num_rows:
            parent.num_classes = layer.weight.shape[0]  # type: ignore[assignment]
