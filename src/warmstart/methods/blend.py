"""Blend weights into a new run: between a start and what was tuned from it, or over a run's last checkpoints.

Nothing is trained. Every candidate is measured on the val split of the tuned run (and on retained data), one is
chosen by a stated rule, and only that one is measured on test, beside the tuned model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from warmstart.analysis.paired import Change, Scored, change_between
from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, splits_of, task_and_targets
from warmstart.config.io import from_dict
from warmstart.config.schema import SELECTION_METRICS, DataConfig
from warmstart.console import log, progress
from warmstart.data.batches import evaluation_batches
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.restore import Restored
from warmstart.methods.candidates import Request, State, candidates_of, load_state, open_tuned
from warmstart.methods.weights import estimate_statistics
from warmstart.records import Decision
from warmstart.tasks.classification import Classification


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
    decision: Decision | None  # of the blend: by the tuned run's rule, on val


def blend(request: Request, device: torch.device) -> Blended:
    """Measure the candidates, choose one, and compare it with the tuned model.

    Raises:
        UserError: models that cannot be blended, no val split, an unknown rule, or nothing to choose between.
    """
    tuned = open_tuned(request, device)
    run = tuned.reference.run
    assert run is not None, "the tuned model is a run"
    own = splits_of(open_evaluation_set(run, None, "all", tuned.built))
    if "val" not in own:
        raise UserError(f"{run.path} has no val split", "a val split, on which a blend is chosen")
    retained = {}
    if request.retain is not None:
        retained = splits_of(open_evaluation_set(None, DataConfig(path=request.retain), "all", tuned.built))
    # Test chooses nothing; data without splits serve for both, which the result says.
    chosen_on = next((name for name in ("val", "train", "all") if name in retained), None)
    judge = None if chosen_on is None else part_of(retained[chosen_on])
    start, candidates, kept = candidates_of(request, tuned, device)
    points = []
    before_choice = tuned.built.decision and tuned.built.decision.for_other_weights
    score = partial(score_weights, tuned, request.workers, before_choice)
    with progress("blending", len(candidates)) as bar:
        for number, candidate in enumerate(candidates, 1):
            _load(tuned, candidate.weights(), own["train"], request)
            val = score(own["val"]).metrics
            far = None if judge is None else score(judge).metrics
            points.append(Point(candidate.name, candidate.alpha, val, far))
            bar.update(number)
    metric = str(run.resolved["select_by"])
    rule = request.choose or ("mean" if request.retain else "best")
    chosen = choose(points, rule, metric)
    weights = _load(tuned, candidates[chosen].weights(), own["train"], request)
    decision = decided(tuned, own["val"], request.workers)
    judged = [("own data", own, "test" if "test" in own else "val")]
    if retained:
        split = "test" if "test" in retained else str(chosen_on)
        too_kind = ", on which the choice was made too" if split == chosen_on and rule == "mean" else ""
        judged.append((f"retained data{too_kind}", retained, split))
    changes = []
    for where, splits, split in judged:
        after = score_weights(tuned, request.workers, decision, splits[split])
        for reference in ("tuned",) if start is None else ("tuned", "start"):
            if reference == "start" and (kept or where == "own data"):
                continue  # a start with another head has no answers of its own
            other = load_state(tuned.reference.file) if reference == "tuned" else candidates[0].weights()
            tuned.built.module.load_state_dict(other)
            own_decision = tuned.built.decision if reference == "tuned" else before_choice
            before = score_weights(tuned, request.workers, own_decision, splits[split])
            _, targets = task_and_targets(splits[split], tuned)
            changes.append((where, split, reference, change_between(before, after, targets)))
        tuned.built.module.load_state_dict(weights)
    return Blended(tuned, start, points, chosen, rule, metric, kept, changes, weights, decision)


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
    if not np.isfinite(near).any():
        raise UserError(f"no candidate has a finite {metric} on val", "weights that give finite outputs")
    if name == "best" and not text:
        return int(np.nanargmax(near))
    if name == "mean" and not text:
        if any(point.retained is None for point in points):
            raise UserError(
                "--choose mean without retained images to choose on",
                "--retain DATA with a val or a train split: test chooses nothing",
            )
        far = np.array([sign * point.retained[metric] for point in points if point.retained is not None])
        return int(np.nanargmax(near + far))
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


def _load(tuned: Restored, weights: State, train: EvaluationSet, request: Request) -> State:
    """Put weights into the module; those in force afterwards, with the statistics that `--bn` asks for."""
    module = tuned.built.module
    module.load_state_dict(weights)
    if request.bn == "estimate":
        estimate_statistics(module, inputs_of(tuned, train, request.workers))
    # Of the module's own memory layout, in which safetensors keeps nothing.
    return {
        key: value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in module.state_dict().items()
    }


def inputs_of(tuned: Restored, chosen: EvaluationSet, workers: int) -> Iterator[Tensor]:
    device = next(tuned.built.module.parameters()).device
    to_tensor = InputBuffer(tuned.built.preprocessing, device, tuned.built.channels_last)
    for samples in chosen.samples:
        size = tuned.eval_batch_size
        for batch in evaluation_batches(samples, tuned.built.preprocessing, tuned.native, size, workers):
            yield to_tensor(batch.images)


def score_weights(model: Restored, workers: int, decision: Decision | None, chosen: EvaluationSet) -> Scored:
    """What the weights in force make of a split; `decision` is theirs, not that of the model's file."""
    task, targets = task_and_targets(chosen, model)
    if isinstance(task, Classification):
        task = replace(task, decision=decision)
    outputs = model.outputs(chosen.samples, None, workers, task=task)
    return Scored(task, task.scores(outputs), task.evaluate(outputs, targets))


def decided(model: Restored, val: EvaluationSet, workers: int) -> Decision | None:
    """How the weights in force decide between two classes, by the rule of the run: chosen on its val."""
    task, targets = task_and_targets(val, model)
    if not isinstance(task, Classification) or model.reference.run is None:
        return model.built.decision
    kept = model.built.decision and model.built.decision.for_other_weights
    rule = from_dict(model.reference.run.config).task.threshold
    task = replace(task, decision=kept, rule=rule)
    return task.decided(model.outputs(val.samples, None, workers, task=task), targets).decision


def part_of(chosen: EvaluationSet, most: int = 1000) -> EvaluationSet:
    """At most so many of the images of one split, evenly spread."""
    (samples,) = chosen.samples
    rows = np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(np.int64)
    return replace(chosen, samples=(samples.subset(rows),), targets=chosen.targets[rows])
