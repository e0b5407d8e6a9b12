"""One backbone, a head for each of several tasks: the modules, and the model as one of the tasks sees it.

Heads stand in the place of the model's classifier, and one of them is asked at a time. Beside masks, the head of labels
is a linear layer over the last features of the encoder, averaged over their places.
Shapes: N images, C channels of the features, K classes of a task.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.build import BuiltModel
from warmstart.models.heads import HeadChange, fit_head, num_outputs
from warmstart.models.task_files import LABEL_HEADS, LOG_VARIANCES, child_of, head_state
from warmstart.models.weights import WeightsFile
from warmstart.models.zoo import outline
from warmstart.records import TASK_HEAD, Block, TaskHead, Tasks

_POOLED = {"builtin:microsegformer": "norm4", "builtin:microsegformer_nolmsa": "norm4"}


class HeadsByTask(nn.Module):
    """The layers of several tasks in the place of one; `active` is the task whose layer computes."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.active = next(iter(layers))
        for name, layer in layers.items():
            self.add_module(child_of(name), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._modules[child_of(self.active)](x)  # type: ignore[misc]


def called(built: BuiltModel, module: nn.Module) -> nn.Module:
    """The module, or a copy of it, as a batch of this model's task goes through it."""
    if built.tasks is None or built.task is None:
        return module
    head = built.tasks.find(built.task)
    assert head is not None, f"no task {built.task}"
    return TaskPart(module, built.tasks, head)


class _Reached(Exception):
    """The features are there: what comes after them need not be computed."""

    def __init__(self, features: Any) -> None:
        self.features = features


class TaskPart(nn.Module):
    """A model of several tasks as one of them calls it: (N, channels, H, W) -> what its head gives."""

    def __init__(self, module: nn.Module, tasks: Tasks, head: TaskHead) -> None:
        super().__init__()
        self.whole, self._tasks, self._head = module, tasks, head

    def forward(self, images: Tensor) -> Tensor:
        head = self._head
        if head.pooled is None:
            layers = self.whole.get_submodule(self._tasks.head)
            assert isinstance(layers, HeadsByTask), "a model of several tasks"
            layers.active = head.name
            outputs: Tensor = self.whole(images)
            return outputs
        return self.whole.get_submodule(head.path)(_pooled(self.whole, head.pooled, images))


def _pooled(module: nn.Module, path: str, images: Tensor) -> Tensor:
    """(N, C): the last features that the module at `path` gives, averaged; nothing behind it is computed."""

    def stop(_: nn.Module, arguments: Any, output: Any) -> None:
        raise _Reached(output)

    handle = module.get_submodule(path).register_forward_hook(stop)
    try:
        module(images)
    except _Reached as reached:
        features = reached.features
    finally:
        handle.remove()
    while not isinstance(features, Tensor):  # the encoder's maps, the deepest last
        features = [*(features.values() if isinstance(features, Mapping) else features)][-1]
    if features.ndim == 3:  # (N, tokens, C)
        return features.mean(dim=1)
    assert features.ndim == 4, f"features {tuple(features.shape)}"
    return features.mean(dim=(2, 3))


def with_heads(
    built: BuiltModel,
    wanted: Sequence[tuple[str, str, tuple[str, ...]]],
    primary: str,
    file: WeightsFile | None,
    seed: int,
    learned_weights: bool = False,
) -> tuple[BuiltModel, tuple[BuiltModel, ...]]:
    """The model with a head for each task, and the model as each task sees it; changes the module in place.

    `wanted` are (name, kind, classes); the classifier of `built` is that of the task `primary`. Where `file` holds a
    head of a task's name, rows of the same classes are kept. With `learned_weights` each task has the logarithm of a
    variance beside its head.

    Raises:
        UserError: a model whose classifier is more than one layer, or whose encoder is not known beside masks.
    """
    _check_head(built)
    layer = built.module.get_submodule(built.head)
    channels = None
    layers: dict[str, nn.Module] = {}
    changes: dict[str, HeadChange] = {}
    heads: list[TaskHead] = []
    for number, (name, kind, classes) in enumerate(wanted):
        is_pooled = built.segments and kind != "masks"
        at = f"{LABEL_HEADS if is_pooled else built.head}.{child_of(name)}"
        heads.append(TaskHead(name, kind, classes, at, _encoder(built) if is_pooled else None))
        if name == primary:
            layers[name], changes[name] = layer, built.head_change
            continue
        if is_pooled:
            channels = channels or _num_features(built)
            with torch.device("meta"):
                form: nn.Module = nn.Linear(channels, 1)
        else:
            form = layer
        known = None if file is None or file.tasks is None else file.tasks.find(name)
        source = None if known is None or file is None else (known.classes, head_state(file, known))
        layers[name], changes[name] = _layer(form, classes, source, (seed + number) % 2**63)
    tasks = Tasks(built.head, tuple(heads))
    _put_heads(built.module, tasks, layers, learned_weights)
    blocks = (*built.blocks[:-1], *(_block(built.module, head) for head in heads))
    views = tuple(
        replace(
            built,
            blocks=blocks,
            head=head.path,
            classes=head.classes,
            head_change=changes[head.name],
            multi_label=head.kind == "multi-label",
            segments=head.kind == "masks",
            tasks=tasks,
            task=head.name,
        )
        for head in heads
    )
    return replace(built, blocks=blocks, tasks=tasks, head_change=_change(changes)), views


def of_task(built: BuiltModel, head: TaskHead, tasks: Tasks) -> BuiltModel:
    """A restored model as the one of its tasks that has a head beside the model's own, under other names."""
    part = TaskPart(built.module, tasks, head)
    path = f"whole.{head.path}"
    return replace(
        built,
        module=part,
        head=path,
        classes=head.classes,
        multi_label=head.kind == "multi-label",
        segments=False,
    )


def add_label_head(built: BuiltModel, file: WeightsFile, head: TaskHead) -> BuiltModel:
    """The segmenting model with the pooled head of labels that the file has, as a classifier."""
    assert head.pooled is not None and file.tasks is not None, "a head beside those of masks"
    state = head_state(file, head)
    with torch.device("meta"):
        layer = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(state)
    _put_pooled(built.module, {head.name: layer})
    return of_task(built, head, file.tasks)


def _check_head(built: BuiltModel) -> None:
    beside = [name for name in built.blocks[-1].parameters if not name.startswith(f"{built.head}.")]
    if beside:
        raise UserError(
            f"the head of {built.name} is more than one layer", "a classifier of one layer", "another --model"
        )


def _layer(
    form: nn.Module,
    classes: tuple[str, ...],
    source: tuple[tuple[str, ...], dict[str, Tensor]] | None,
    seed: int,
) -> tuple[nn.Module, HeadChange]:
    """A layer like `form` for these classes, with the rows that a source (classes, tensors) has of them."""
    holder, weight = nn.Module(), form.get_parameter("weight")
    device = torch.device("cpu") if weight.is_meta else weight.device
    holder.add_module("layer", form.to_empty(device="cpu") if weight.is_meta else copy.deepcopy(form))
    if source is None:
        change = replace(fit_head(holder, "layer", (), classes, seed), reason="a new task")
    else:
        known, state = source
        if len(known) != num_outputs(holder, "layer"):
            fit_head(holder, "layer", (), known, seed)
        holder.get_submodule("layer").load_state_dict(state)
        change = fit_head(holder, "layer", known, classes, seed)
    return holder.get_submodule("layer").to(device), change


def _put_heads(module: nn.Module, tasks: Tasks, layers: Mapping[str, nn.Module], learned: bool) -> None:
    own = {head.name: layers[head.name] for head in tasks.heads if head.pooled is None}
    parent, _, name = tasks.head.rpartition(".")
    setattr(module.get_submodule(parent), name, HeadsByTask(own))
    if pooled := {head.name: layers[head.name] for head in tasks.heads if head.pooled is not None}:
        _put_pooled(module, pooled)
    if learned:
        zeros = {child_of(head.name): nn.Parameter(torch.zeros(())) for head in tasks.heads}
        module.add_module(LOG_VARIANCES, nn.ParameterDict(zeros))


def _put_pooled(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    module.add_module(LABEL_HEADS, nn.ModuleDict({child_of(name): layer for name, layer in layers.items()}))


def _block(module: nn.Module, head: TaskHead) -> Block:
    """The block of a task's own head, with what is learned of its weight."""
    variance = f"{LOG_VARIANCES}.{child_of(head.name)}"
    names = tuple(
        name for name, _ in module.named_parameters() if name.startswith(f"{head.path}.") or name == variance
    )
    buffers = tuple(name for name, _ in module.named_buffers() if name.startswith(f"{head.path}."))
    return Block(f"{TASK_HEAD}{head.name}", names, buffers, (head.path,), ())


def _change(changes: Mapping[str, HeadChange]) -> HeadChange:
    """What became of all heads: kept where each was."""
    kinds = {change.kind for change in changes.values()}
    told = "; ".join(f"{name} {change.kind} ({change.reason})" for name, change in changes.items())
    return HeadChange(kinds.pop() if len(kinds) == 1 else "mixed", (), (), told)


def _encoder(built: BuiltModel) -> str:
    """The module whose output is the last features of a segmenting model."""
    path = _POOLED.get(built.name) or (outline(built.name).encoder or "").rstrip(".")
    if not path:
        raise UserError(
            f"{built.name} beside labels: which of its modules is the encoder is not known",
            "smp:ARCH/ENCODER, torchvision:deeplabv3_resnet50 or another of torchvision's, or builtin:microsegformer",
            "choose one of these for masks and labels together",
        )
    return path


def _num_features(built: BuiltModel) -> int:
    """Channels of the last features, by a look at one image."""
    height, width = built.preprocessing.image_size
    device = next(built.module.parameters()).device
    was_training = {module: module.training for module in built.module.modules()}
    with torch.no_grad():
        image = torch.zeros(1, built.preprocessing.num_channels, height, width, device=device)
        found = _pooled(built.module.eval(), _encoder(built), image).shape[1]
    for module, training in was_training.items():
        module.training = training
    return found
