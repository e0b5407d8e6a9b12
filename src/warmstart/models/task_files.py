"""Files with the heads of several tasks: one of them as if it were alone, and a file of one task as one of several."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from warmstart.errors import UserError, closest, listing
from warmstart.models.weights import WeightsFile
from warmstart.records import TaskHead, Tasks

LABEL_HEADS, LOG_VARIANCES = "label_heads", "task_log_variances"  # modules beside the model's own


def child_of(name: str) -> str:
    """What a task's layer is called where the layers of all tasks stand: never a name that a module has already."""
    return f"task_{name}"


def find_task(tasks: Tasks, name: str | None, source: str) -> TaskHead:
    """UserError where several tasks are there and none of them is named."""
    found = None if name is None else tasks.find(name)
    if found is None:
        raise UserError(
            f"{source} holds the tasks {listing(tasks.names)}"
            + ("" if name is None else f", and none is called {name!r}"),
            "one of them",
            ("" if name is None else closest(name, tasks.names)) or f"--task {tasks.names[0]}",
        )
    return found


def alone(file: WeightsFile, name: str | None) -> WeightsFile:
    """The file as of one task, under the model's own names; `name` None: of none, so without a classifier.

    A head that is beside the model's own is not taken: see `head_state`.
    """
    assert file.tasks is not None, "asked for only where there are several"
    found = None if name is None else file.tasks.find(name)
    state = _backbone(file)
    if found is None or found.pooled is not None:
        told = "left out the heads of"
        return replace(
            file,
            state=state,
            classes=None,
            tasks=None,
            multi_label=False,
            notes=(*file.notes, _note(file, told)),
        )
    state |= {f"{file.tasks.head}.{key}": tensor for key, tensor in head_state(file, found).items()}
    return replace(
        file,
        state=state,
        classes=found.classes,
        multi_label=found.kind == "multi-label",
        tasks=None,
        notes=(*file.notes, _note(file, f"took the head of {found.name} among those of")),
    )


def nearest_task(file: WeightsFile, classes: tuple[str, ...]) -> str | None:
    """The task that has most of these classes; None where none has any, or several have as many."""
    assert file.tasks is not None, "asked for only where there are several"
    shared = {
        head.name: len({*head.classes} & {*classes}) for head in file.tasks.heads if head.pooled is None
    }
    most = max(shared.values(), default=0)
    best = [name for name, num in shared.items() if num == most]
    return best[0] if most and len(best) == 1 else None


def head_state(file: WeightsFile, head: TaskHead) -> dict[str, Tensor]:
    """The tensors of a task's layer, by their names in it."""
    prefix = f"{head.path}."
    return {key.removeprefix(prefix): t for key, t in file.state.items() if key.startswith(prefix)}


def with_name(file: WeightsFile, name: str, head: str, segments: bool) -> WeightsFile:
    """A file of one task as one of several, of which it has one: `head` is the path of its classifier."""
    prefix, path = f"{head}.", f"{head}.{child_of(name)}"
    if file.classes is None or f"{head}.weight" not in file.state:
        raise UserError(
            f"{file.path} holds no classifier with names of classes that could be kept",
            "the weights of a run",
            "leave --retain out",
        )
    state = {
        f"{path}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: tensor
        for key, tensor in file.state.items()
    }
    kind = "masks" if segments else "multi-label" if file.multi_label else "labels"
    return replace(file, state=state, tasks=Tasks(head, (TaskHead(name, kind, file.classes, path),)))


def _backbone(file: WeightsFile) -> dict[str, Tensor]:
    assert file.tasks is not None, "asked for only where there are several"
    beside = (*(f"{head.path}." for head in file.tasks.heads), f"{LABEL_HEADS}.", f"{LOG_VARIANCES}.")
    return {key: tensor for key, tensor in file.state.items() if not key.startswith(beside)}


def _note(file: WeightsFile, what: str) -> str:
    assert file.tasks is not None, "asked for only where there are several"
    return f"{what} the tasks {listing(file.tasks.names)}"
