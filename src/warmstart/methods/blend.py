"""Blend weights into a new run: between a start and what was tuned from it, or over a run's last checkpoints.

Nothing is trained. Every candidate is measured on the val split of the tuned run (and on retained data), one is
chosen by a stated rule, and only that one is measured on test, beside the tuned model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from warmstart.analysis.paired import Change, Scored, change_between
from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, task_and_targets
from warmstart.config.schema import SELECTION_METRICS, DataConfig
from warmstart.console import log, progress
from warmstart.data.batches import evaluation_batches
from warmstart.errors import UserError, listing
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.restore import Restored, restore
from warmstart.methods.weights import average, between, estimate_statistics, running_norms
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


@dataclass(frozen=True)
class Point:
    """A candidate's metrics on val, and on the retained data if there are any."""

    name: str
    alpha: float | None
    val: dict[str, float]
    retained: dict[str, float] | None


@dataclass(frozen=True)
class Blended:
    """All candidates measured, and what the chosen one did: `changes` are of (data, split, against what)."""

    tuned: Restored
    start: str | None
    points: list[Point]
    chosen: int
    rule: str
    metric: str
    kept: tuple[str, ...]  # tensors that START does not have like that: TUNED's at every alpha
    changes: list[tuple[str, str, str, Change]]
    weights: State


def blend(request: Request, device: torch.device) -> Blended:
    """Measure the candidates, choose one, and compare it with the tuned model.

    Raises:
        UserError: models that cannot be blended, no val split, an unknown rule, or nothing to choose between.
    """
    tuned = _tuned(request, device)
    run = tuned.reference.run
    assert run is not None, "the tuned model is a run"
    own = _splits(open_evaluation_set(run, None, "all", tuned.built))
    if "val" not in own:
        raise UserError(f"{run.path} has no val split", "a val split, on which a blend is chosen")
    retained = {}
    if request.retain is not None:
        retained = _splits(open_evaluation_set(None, DataConfig(path=request.retain), "all", tuned.built))
    chosen_on = next((name for name in ("val", "test", "all", "train") if name in retained), None)
    start, candidates, kept = _candidates(request, tuned, device)
    points = []
    with progress("blending", len(candidates)) as bar:
        for number, candidate in enumerate(candidates, 1):
            _load(tuned, candidate.weights(), own["train"], request)
            val = _score(tuned, own["val"], request.workers).metrics
            far = None if chosen_on is None else _score(tuned, retained[chosen_on], request.workers).metrics
            points.append(Point(candidate.name, candidate.alpha, val, far))
            bar.update(number)
    metric = str(run.resolved["select_by"])
    rule = request.choose or ("mean" if request.retain else "best")
    chosen = choose(points, rule, metric)
    weights = _load(tuned, candidates[chosen].weights(), own["train"], request)
    judged = [("own data", own, "test" if "test" in own else "val")]
    if chosen_on is not None:
        judged.append(("retained data", retained, "test" if "test" in retained else chosen_on))
    changes = []
    for where, splits, split in judged:
        after = _score(tuned, splits[split], request.workers)
        for reference in ("tuned",) if start is None else ("tuned", "start"):
            if reference == "start" and (kept or where == "own data"):
                continue  # a start with another head has no answers of its own
            other = load_state(tuned.reference.file) if reference == "tuned" else candidates[0].weights()
            tuned.built.module.load_state_dict(other)
            before = _score(tuned, splits[split], request.workers)
            _, targets = task_and_targets(splits[split], tuned)
            changes.append((where, split, reference, change_between(before, after, targets)))
        tuned.built.module.load_state_dict(weights)
    return Blended(tuned, start, points, chosen, rule, metric, kept, changes, weights)


def choose(points: list[Point], rule: str, metric: str) -> int:
    """The number of the chosen point; ties go to the one nearer to the start.

    `best`: the highest `metric` on val; `mean`: the highest mean of val's and the retained data's; `gain=.8`: the
    smallest alpha that keeps this share of what tuning gained on val; the start where it gained nothing.

    Raises:
        UserError: no such rule, or one that needs what is not there.
    """
    sign = SELECTION_METRICS[metric]
    near = np.array([sign * point.val[metric] for point in points])
    name, _, text = rule.partition("=")
    if name == "best" and not text:
        return int(near.argmax())
    if name == "mean" and not text:
        if any(point.retained is None for point in points):
            raise UserError("--choose mean without --retain", "the data that should not be forgotten")
        far = np.array([sign * point.retained[metric] for point in points if point.retained is not None])
        return int((near + far).argmax())
    share = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    if name != "gain" or not 0 < share <= 1:
        raise UserError(f"--choose {rule}", "best, mean, or gain=SHARE with a share above 0 and up to 1")
    if points[0].alpha is None:
        raise UserError(
            f"--choose {rule} beside --last", "a start, which the gain is measured from", "--choose best"
        )
    if near[-1] <= near[0]:
        before, after = points[0].val[metric], points[-1].val[metric]
        log.warning(
            "tuning gained nothing on val (%s %.4f to %.4f): alpha 0, the start", metric, before, after
        )
        return 0
    return int(np.flatnonzero(near >= near[0] + share * (near[-1] - near[0]) - 1e-12)[0])


def load_state(file: str | None) -> State:
    assert file is not None, "a run's weights lie in a file"
    return load_file(file)


def _tuned(request: Request, device: torch.device) -> Restored:
    if len(request.models) not in (1, 2) or (request.last is not None and len(request.models) != 1):
        raise UserError(
            f"{len(request.models)} models are named", "START TUNED, TUNED alone, or RUN with --last N"
        )
    tuned = restore(request.models[-1], device)
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


def _candidates(
    request: Request, tuned: Restored, device: torch.device
) -> tuple[str | None, list[Candidate], tuple[str, ...]]:
    """The start's name, the candidates from start to tuned, and the names of tensors that are tuned's in all."""
    run = tuned.reference.run
    assert run is not None and tuned.reference.file is not None
    if request.last is not None:
        return None, _averages(run, request.last), ()
    name = request.models[0] if len(request.models) == 2 else _own_start(run)
    start = restore(name, device)
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


def _own_start(run: Run) -> str:
    """What the run was started from, where that can be read again."""
    parent, source = run.resolved["parent"], run.resolved["model"]["source"]
    if parent is not None:
        return f"{parent['run']}@{parent['step']}"
    if source["kind"] == "file":
        return str(source["path"])
    raise UserError(
        f"{run.path} was started from {source['kind']} weights", "START TUNED", "name the start model first"
    )


def _not_shared(before: State, after: State, start: Restored, tuned: Restored) -> tuple[str, ...]:
    """Tensors of the head, where the start's is for other classes. Raises UserError for any other difference."""
    head = f"{tuned.built.head}."
    other = [key for key in after if key not in before or before[key].shape != after[key].shape]
    other += [key for key in before if key not in after]
    foreign = [key for key in other if not key.startswith(head)]
    if start.built.name != tuned.built.name or foreign:
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


def _splits(everything: EvaluationSet) -> dict[str, EvaluationSet]:
    """A set of all splits, taken apart."""
    found, first = {}, 0
    for name, samples in zip(everything.split.split(","), everything.samples, strict=True):
        rows = slice(first, first := first + len(samples))
        found[name] = replace(everything, samples=(samples,), targets=everything.targets[rows], split=name)
    return found


def _load(tuned: Restored, weights: State, train: EvaluationSet, request: Request) -> State:
    """Put weights into the module; those in force afterwards, with the statistics that `--bn` asks for."""
    module = tuned.built.module
    module.load_state_dict(weights)
    if request.bn == "estimate":
        estimate_statistics(module, _inputs(tuned, train, request.workers))
    # Of the module's own memory layout, in which safetensors keeps nothing.
    return {
        key: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in module.state_dict().items()
    }


def _inputs(tuned: Restored, chosen: EvaluationSet, workers: int) -> Iterator[Tensor]:
    device = next(tuned.built.module.parameters()).device
    to_tensor = InputBuffer(tuned.built.preprocessing, device, tuned.built.channels_last)
    for samples in chosen.samples:
        size = tuned.eval_batch_size
        for batch in evaluation_batches(samples, tuned.built.preprocessing, tuned.native, size, workers):
            yield to_tensor(batch.images)


def _score(model: Restored, chosen: EvaluationSet, workers: int) -> Scored:
    task, targets = task_and_targets(chosen, model)
    outputs = model.outputs(chosen.samples, None, workers, task=task)
    return Scored(task, task.scores(outputs), task.evaluate(outputs, targets))
