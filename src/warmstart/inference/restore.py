"""A run directory, a step of it, a file of weights, or FILE.onnx -> a model ready to evaluate and predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.config.distill_rules import is_onnx
from warmstart.config.io import from_dict
from warmstart.config.places import expanded
from warmstart.config.schema import ModelConfig, TextConfig
from warmstart.data.batches import evaluation_batches
from warmstart.data.samples import Samples
from warmstart.errors import UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.onnx_build import build_onnx
from warmstart.inference.predictor import predict_outputs
from warmstart.inference.reference import (
    WeightsReference,
    processor_of,
    recorded_thresholds,
    resolve_weights,
)
from warmstart.models.build import BuiltModel, build, no_adapters
from warmstart.models.image_text.prompts import Texts
from warmstart.models.task_files import alone, find_task
from warmstart.models.task_heads import add_label_head
from warmstart.models.weights import read_weights
from warmstart.tasks.classification import Classification
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import DEFAULT_IGNORE, Segmentation
from warmstart.tasks.task import Task

_HF = "hf:"  # a model of transformers as it is, which is no file of weights


@dataclass(frozen=True)
class Restored:
    """The model in evaluation mode on its device, and where it came from."""

    built: BuiltModel
    reference: WeightsReference
    overridden: bool  # its preprocessing was changed by hand: what it scores is not the run's own result
    zero_shot: bool = False  # its classifier is made of texts, and no training has seen it

    @property
    def native(self) -> bool:
        """Whether an image of exactly the input's size is taken as it is: as in training, or as a bare file says."""
        run = self.reference.run
        return self.built.native if run is None else bool(run.resolved["data"]["native"])

    @property
    def has_pictures(self) -> bool:
        """Whether its run draws pictures; a bare file has them."""
        run = self.reference.run
        return run is None or from_dict(run.config).output.pictures

    @property
    def precision(self) -> torch.dtype | None:
        """The arithmetic of the run's own validations, where this device has it; float32 for bare files."""
        run = self.reference.run
        recorded = "float32" if run is None else run.resolved["precision"]
        on_cuda = next(self.built.module.parameters()).device.type == "cuda"
        return getattr(torch, recorded) if recorded != "float32" and on_cuda else None

    @property
    def eval_batch_size(self) -> int:
        """The run's own, with which its validations can be repeated to the bit; 64 for bare files."""
        run = self.reference.run
        return 64 if run is None else int(run.resolved["eval_batch_size"])

    @property
    def task(self) -> Classification | MultiLabel | Segmentation:
        """What the outputs mean; with the thresholds that the run recorded for this step, or that the file states."""
        classes, run = self.built.classes, self.reference.run
        if self.built.segments:
            if run is None:
                return Segmentation(classes)
            recorded = run.resolved["data"].get("ignore")
            ignore = DEFAULT_IGNORE if recorded is None else recorded
            return Segmentation(classes, ignore, batch_size=run.config["data"]["batch_size"])
        if not self.built.multi_label:
            return Classification(classes, decision=self.built.decision)
        found = recorded_thresholds(self.reference, classes) or self.built.thresholds
        return MultiLabel(classes, thresholds=None if found is None else found.values)

    def outputs(
        self,
        samples: Iterable[Samples],
        batch_size: int | None = None,
        workers: int = 0,
        on_batch: Callable[[int], None] | None = None,
        task: Task | None = None,
    ) -> np.ndarray:
        """Logits, float32 (N, classes), of all samples in a row, or the statistics that the `task` keeps of each."""
        size = batch_size or self.eval_batch_size
        batches = chain.from_iterable(
            evaluation_batches(part, self.built.preprocessing, self.native, size, workers) for part in samples
        )
        device = next(self.built.module.parameters()).device
        inputs = InputBuffer(self.built.preprocessing, device, self.built.channels_last)
        statistics = None if task is None else task.statistics
        return predict_outputs(self.built.module, batches, inputs, self.precision, on_batch, statistics)

    @property
    def label(self) -> str:
        """`RUN@step`, or the file."""
        if self.reference.run is not None:
            task = "" if self.reference.run.task is None else f", task {self.reference.run.task}"
            return f"{self.reference.run.path}@{self.reference.step}{task}"
        return str(self.built.source["path"])


def restore_zero_shot(
    model: str,
    device: torch.device,
    classes: tuple[str, ...],
    prompts: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Restored:
    """The classifier of `classes` that the text tower of `model` makes of their names: hf:FOLDER, or a run whose
    text tower was kept. `prompts` are as the setting --text.prompts has them; by default a run's own for its classes.

    Raises:
        UserError: a model without a text tower or tokenizer, or prompts for other classes.
    """
    if model.startswith(_HF):
        reference, name = WeightsReference(None), model
        settings = TextConfig(head="zero-shot", prompts=prompts)
    else:
        reference, name = resolve_weights(model), None
        settings = TextConfig(prompts=prompts)
    texts = Texts(settings, processor_of(reference.run))
    built = build(ModelConfig(name=name, weights=reference.file), overrides or {}, classes, 0, text=texts)
    if built.text is None or built.text.by_text is None:
        raise UserError(
            f"{model} has no text tower" + ("" if built.text is None else " any more: it was dropped"),
            "hf:FOLDER of a CLIP or SigLIP, or a run of --text.head contrastive",
            "leave --zero-shot out to measure the classifier that it has",
        )
    built.move_to(device)
    built.module.eval()
    return Restored(built, reference, overridden=True, zero_shot=True)


def restore_by_texts_of(tuned: Restored, model: str, device: torch.device) -> Restored:
    """hf:FOLDER with the head, the classes, the texts and the image size of `tuned`: what that was started from."""
    text, built = tuned.built.text, tuned.built
    assert text is not None and text.prompts, "a model whose classifier was made of texts"
    texts = Texts(TextConfig.model_validate({"head": text.head}), prompts=text.prompts)
    sides = {"image_size": built.preprocessing.image_size}
    made = build(ModelConfig(name=model), sides, built.classes, 0, text=texts)
    made.move_to(device)
    made.module.eval()
    return Restored(made, WeightsReference(None), overridden=True, zero_shot=True)


def restore(
    model: str,
    device: torch.device,
    name: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    merged: bool = False,
    task: str | None = None,
) -> Restored:
    """Load `model` with its own classes; `name` says which architecture where the file does not. A model hf:FOLDER has
    its pretrained weights, FILE.onnx its graph. Of a model of several tasks it is the one that `task` names.

    `merged`: as a plain model, with low-rank adapters added to the weights.

    Raises:
        UserError: no such run, step or file, a damaged one, or weights of another architecture; several tasks, and
            none of them named, or one that is not there.
    """
    if not model:
        raise UserError("no model is named", "a run directory, RUN@step, or a file of weights")
    if is_onnx(model):
        return _restore_onnx(model, device, overrides or {}, {"--model-name": name, "--task": task})
    reference = WeightsReference(None) if model.startswith(_HF) else resolve_weights(model)
    if reference.run is not None and reference.run.resolved.get("episodes") is not None:
        raise UserError(
            f"{model} was learned from episodes: it is a start for new classes, and has none of its own",
            "a run with classes",
            f"warmstart finetune --weights {model} --data DATA; `warmstart show` has what it does in episodes",
        )
    if task is not None or (reference.run is not None and reference.run.tasks):
        return _restore_task(model, reference, device, task, overrides, merged)
    settings = ModelConfig(name=model if model.startswith(_HF) else name, weights=reference.file)
    built = build(settings, overrides or {}, None, seed=0, choose=no_adapters if merged else None)
    built.move_to(device)
    built.module.eval()
    return Restored(built, reference, bool(overrides))


def _restore_onnx(
    model: str, device: torch.device, overrides: Mapping[str, Any], asked: Mapping[str, str | None]
) -> Restored:
    """`asked` is what a graph has no choice of, by flag."""
    for flag, value in asked.items():
        if value is not None:
            raise UserError(f"{flag} {value}: {model} is one graph", f"no {flag}", "leave it out")
    built = build_onnx(Path(expanded(model)), overrides)
    built.move_to(device)
    return Restored(built, WeightsReference(model), bool(overrides))


def _restore_task(
    model: str,
    reference: WeightsReference,
    device: torch.device,
    task: str | None,
    overrides: Mapping[str, Any] | None,
    merged: bool,
) -> Restored:
    """One task of a model of several, as a model of its own."""
    file = None if reference.file is None else read_weights(reference.file)
    if file is None or file.tasks is None:
        raise UserError(
            f"--task {task}: {model} is of one task", "a model of several tasks", "leave --task out"
        )
    head = find_task(file.tasks, task, model)
    # A head beside those of masks hangs on a segmenting model, which is made with one of its own.
    own = head if head.pooled is None else next(each for each in file.tasks.heads if each.pooled is None)
    built = build(
        alone(file, own.name), overrides or {}, None, seed=0, choose=no_adapters if merged else None
    )
    if head.pooled is not None:
        built = add_label_head(built, file, head)
    built.move_to(device)
    built.module.eval()
    if reference.run is not None:
        reference = replace(reference, run=reference.run.of_task(head.name))
    return Restored(built, reference, bool(overrides))
