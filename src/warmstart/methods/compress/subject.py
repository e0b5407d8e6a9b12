"""The model that is made smaller, and what an edit of it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from warmstart.analysis.paired import Scored
from warmstart.analysis.samples import EvaluationSet, open_evaluation_set, splits_of
from warmstart.config.compress_section import CompressConfig
from warmstart.errors import UserError
from warmstart.inference.restore import Restored, restore
from warmstart.methods.blend import inputs_of, score_weights
from warmstart.methods.compress.sensitivity import Sensitivity
from warmstart.models.build import BuiltModel
from warmstart.models.image_text.prompts import CONTRASTIVE
from warmstart.models.recipe import QUANTISED
from warmstart.records import Edit
from warmstart.run.reader import Run


@dataclass(frozen=True)
class Edited:
    """A smaller copy of a model, what was done to it, in order, and what should be known of that."""

    module: nn.Module
    edits: tuple[Edit, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model that is compressed: plain weights in evaluation mode, with the data of its run by split."""

    restored: Restored
    splits: dict[str, EvaluationSet]
    settings: CompressConfig
    sensitivity: Sensitivity | None = None  # of the original's blocks, where it was asked for

    @property
    def built(self) -> BuiltModel:
        return self.restored.built

    @property
    def run(self) -> Run:
        run = self.restored.reference.run
        assert run is not None, "what is compressed is a run"
        return run

    @property
    def device(self) -> torch.device:
        return next(self.built.module.parameters()).device

    @property
    def metric(self) -> str:
        """The main one of its task."""
        return self.restored.task.metrics[0]

    @property
    def has_pictures(self) -> bool:
        return self.restored.has_pictures

    def example(self, num_images: int = 1) -> Tensor:
        """Noise in the form of normalised images, float32 (N, C, H, W)."""
        preprocessing = self.built.preprocessing
        shape = (num_images, preprocessing.num_channels, *preprocessing.image_size)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        layout = torch.channels_last if self.built.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def training_images(self) -> Iterator[Tensor]:
        """Normalised batches of --calibration training images, evenly spread, without augmentation."""
        return inputs_of(self.restored, self.calibration(), self.settings.workers)

    def calibration(self) -> EvaluationSet:
        """--calibration of the training images, evenly spread. UserError: there is none."""
        train = self.splits["train"]
        (samples,) = train.samples
        num = min(self.settings.calibration, len(samples))
        if not num:
            raise UserError(
                f"--calibration {self.settings.calibration}: no training images to measure on",
                "some hundred of them",
                "--calibration 256",
            )
        rows = torch.linspace(0, len(samples) - 1, num).long().numpy()
        return replace(train, samples=(samples.subset(rows),), targets=train.targets[rows])

    def score(self, split: str) -> Scored:
        return score_weights(self.restored, self.settings.workers, self.built.decision, self.splits[split])

    def of(self, reference: str) -> Subject:
        """Another state of the same model on the same data."""
        return replace(self, restored=restore(reference, self.device, merged=True))


def open_subject(reference: str, settings: CompressConfig, device: torch.device) -> Subject:
    """The plain model of a run, with its splits.

    Raises:
        UserError: no run, one of several tasks or without val, a text tower that is kept.
    """
    restored = restore(reference, device, merged=True)
    run, built = restored.reference.run, restored.built
    assert run is not None, "a file was made a run before"
    if built.text is not None and built.text.head == CONTRASTIVE:
        raise UserError(
            f"{reference} keeps its text tower, which is not compressed",
            "an image classifier",
            "`warmstart finetune --text.head zero-shot` (or linear) makes one of it",
        )
    if built.recipe is not None and QUANTISED in built.recipe.kinds:
        raise UserError(
            f"{reference} computes in int8 already, which is the last step",
            "the model that it was made of",
            "`warmstart finetune` or `continue` trains it on as it is",
        )
    splits = splits_of(open_evaluation_set(run, None, "all", built))
    if "val" not in splits:
        raise UserError(f"{run.path} has no val split", "a val split, on which what is lost is measured")
    return Subject(restored, splits, settings)
