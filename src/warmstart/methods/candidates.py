"""The weights that a blend is chosen from: on the line between two models, or checkpoints and their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from warmstart.console import log
from warmstart.errors import UserError, listing
from warmstart.inference.reference import own_start, resolve_weights
from warmstart.inference.restore import Restored, restore, restore_by_texts_of
from warmstart.methods.weights import average, between, running_norms
from warmstart.models.adapters.plain import plain_state
from warmstart.models.image_text.prompts import split_head
from warmstart.run import layout
from warmstart.run.reader import Run

State = dict[str, Tensor]


@dataclass(frozen=True)
class Request:
    """What was asked for. `choose` is best, mean, or gain=SHARE; `last` averages so many checkpoints instead."""

    models: tuple[str, ...]
    alphas: tuple[float, ...] = tuple(step / 10 for step in range(11))
    choose: str | None = None
    last: int | None = None
    retain: str | None = None
    bn: str = "keep"
    workers: int = 0


@dataclass(frozen=True)
class Candidate:
    """A set of weights with a name; `alpha` is the share of the tuned model, None for an average."""

    name: str
    alpha: float | None
    weights: Callable[[], State]


def load_state(file: str | None) -> State:
    assert file is not None, "a run's weights lie in a file"
    return plain_state(file)


def open_tuned(request: Request, device: torch.device) -> Restored:
    if len(request.models) not in (1, 2) or (request.last is not None and len(request.models) != 1):
        raise UserError(
            f"{len(request.models)} models are named", "START TUNED, TUNED alone, or RUN with --last N"
        )
    for name in request.models:
        found = resolve_weights(name).run
        if found is not None and found.tasks:
            raise UserError(f"{name} is a run of several tasks, which are not blended", "runs of one task")
    tuned = restore(request.models[-1], device, merged=True)  # the mean of two products is no mean
    if tuned.reference.run is None:
        raise UserError(
            f"{request.models[-1]} is no run of warmstart",
            "a run: its val split chooses, and its classes and preprocessing are the blend's",
            "`warmstart finetune` makes one",
        )
    if request.bn not in ("keep", "estimate"):
        raise UserError(
            f"--bn {request.bn}", "keep (blended like weights) or estimate (from training images)"
        )
    if request.bn == "estimate" and not running_norms(tuned.built.module):
        raise UserError(f"--bn estimate: {tuned.built.name} keeps no running statistics", "--bn keep")
    return tuned


def candidates_of(
    request: Request, tuned: Restored, device: torch.device
) -> tuple[str | None, list[Candidate], tuple[str, ...]]:
    """The start's name, the candidates from start to tuned, and the names of tensors that are tuned's in all."""
    run = tuned.reference.run
    assert run is not None and tuned.reference.file is not None
    if request.last is not None:
        return None, _averages(run, request.last), ()
    name = request.models[0] if len(request.models) == 2 else own_start(run)
    by_texts = name.startswith("hf:") and tuned.built.text is not None and tuned.built.text.prompts
    start = restore_by_texts_of(tuned, name, device) if by_texts else restore(name, device, merged=True)
    after = load_state(tuned.reference.file)
    before = {key: value.cpu() for key, value in start.built.module.state_dict().items()}
    kept = _not_shared(before, after, start, tuned)
    alphas = sorted({0.0, 1.0, *request.alphas})
    if alphas[0] < 0 or alphas[-1] > 1:
        raise UserError(f"--alphas {listing(map(str, request.alphas))}", "shares from 0 (start) to 1 (tuned)")
    made = [Candidate(f"{alpha:g}", alpha, partial(between, before, after, alpha, kept)) for alpha in alphas]
    return start.label, made, kept


def _averages(run: Run, last: int) -> list[Candidate]:
    steps = run.checkpoint_steps()
    wanted = [step for step in steps if step > run.resolved["pace"].get("first_step", 0)][-last:]
    if len(wanted) < max(2, last):
        raise UserError(
            f"--last {last}: {run.path} keeps the checkpoints {listing(steps)}",
            "at least two, and as many as are to be averaged",
            f"a run with --keep-checkpoints {max(2, last)} keeps them",
        )
    files = {step: str(run.checkpoint(step) / layout.MODEL) for step in wanted}
    single = [Candidate(f"step {step}", None, partial(load_state, file)) for step, file in files.items()]
    mean = Candidate(f"mean of {last}", None, lambda: average([load_state(file) for file in files.values()]))
    return [*single, mean]


def _not_shared(before: State, after: State, start: Restored, tuned: Restored) -> tuple[str, ...]:
    """Tensors of the head, where the start's is for other classes. Raises UserError for any other difference."""
    head = f"{tuned.built.head}."
    other = [key for key in after if key not in before or before[key].shape != after[key].shape]
    other += [key for key in before if key not in after]
    foreign = [key for key in other if not key.startswith(head)]
    if _architecture(start) != _architecture(tuned) or start.built.margin != tuned.built.margin or foreign:
        raise UserError(
            f"{start.label} is a {start.built.name} and {tuned.label} a {tuned.built.name}"
            + (f": {listing(foreign, 3)} differ" if foreign else ""),
            "two models of one architecture, the second tuned from the first",
        )
    if start.built.preprocessing != tuned.built.preprocessing:
        log.warning("%s has another preprocessing: that of %s is used", start.label, tuned.label)
    same = not start.built.names_known or start.built.classes == tuned.built.classes
    if not other and same:
        return ()
    log.warning(
        "the head of %s is for other classes: that of %s is used throughout", start.label, tuned.label
    )
    return tuple(key for key in after if key.startswith(head))


def _architecture(model: Restored) -> str:
    """The name; of a model of transformers, which is the name of its folder, only what head it has."""
    name = model.built.name
    return f"hf:{split_head(name)[1]}" if name.startswith("hf:") else name
