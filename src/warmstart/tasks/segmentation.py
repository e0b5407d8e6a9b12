"""Semantic segmentation: a class for every pixel.

Shapes: N images, K classes, h x w the masks' size. A mask holds ids: 0..K-1 are the classes, `ignore` is no class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from warmstart.config.schema import DataConfig
from warmstart.tasks import mask_metrics, objectives
from warmstart.tasks.mask_objectives import MaskLoss, mask_objective, resized

NAME = "segmentation"
DEFAULT_IGNORE = 255
DEFAULT_BATCH_SIZE = int(DataConfig.model_fields["batch_size"].default)
_DEFAULT_LOSS = MaskLoss()
_DEFINITIONS = {
    "miou": "mean over classes of TP / (TP + FP + FN), pixels of all images together; a class that is neither"
    " in a mask nor predicted has no term, one that is only predicted has 0",
    "fscore": "mean over the same classes of 2 TP / (2 TP + FP + FN)",
    "fscore_per_image": "mean over images of the mean F-score over the classes in the image's own mask",
    "fscore_per_batch": "document 002's F-score: mean over batches of {} images, in the order of the split, of the"
    " mean F-score over the classes in the batch's masks; the last batch has what is left",
    "accuracy": "share of the valid pixels whose class is right",
    "loss": "plain cross entropy in nats, mean of the valid pixels: no weights, smoothing or Dice",
}


@dataclass(frozen=True)
class Segmentation:
    """One class per pixel. `class_weights` are in the order of `classes`; None is 1 for each.

    `batch_size` is that of training, and says over how many images `fscore_per_batch` counts together.

    Outputs are (N, K, h', w') and are resized to the masks before anything is computed. Of each image, a row of
    counts is kept (`statistics`; mask_metrics.py says what is in it), so memory does not grow with its pixels.
    """

    classes: tuple[str, ...]
    ignore: int = DEFAULT_IGNORE
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    loss: MaskLoss = _DEFAULT_LOSS
    batch_size: int = DEFAULT_BATCH_SIZE

    name = NAME
    metrics = tuple(_DEFINITIONS)
    columns = ("iou", "fscore", "precision", "recall", "pixels", "images")

    def __post_init__(self) -> None:
        num_weights = len(self.classes if self.class_weights is None else self.class_weights)
        assert num_weights == len(self.classes), f"{num_weights} weights for {len(self.classes)} classes"

    @property
    def definitions(self) -> dict[str, str]:
        """What each of the `metrics` is, in words."""
        return {name: words.format(self.batch_size) for name, words in _DEFINITIONS.items()}

    def objective(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss_sum, weight) of outputs (N, K, h', w') and masks (N, h, w): see `mask_objective`."""
        logits = self._logits(outputs, targets)
        weights = None
        if self.class_weights is not None:
            weights = objectives.on_device(self.class_weights, logits.device, logits.dtype)
        return mask_objective(logits, targets, self.ignore, weights, self.label_smoothing, self.loss)

    def statistics(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N, 3K + 2), float64 where the device has it: one row of counts per image, without a host sync.

        Pixels where the mask is `ignore` count nowhere, whatever is predicted there.
        """
        logits, num_classes = self._logits(outputs, targets), len(self.classes)
        labels = targets.long()
        valid = labels != self.ignore
        predicted = logits.max(dim=1).indices  # four times as fast as argmax on a CPU
        # One cell more than the confusion matrix has, for what is ignored: leaving pixels out would need a sync.
        cells = torch.where(valid, labels * num_classes + predicted, num_classes**2).flatten(1)
        matrix = torch.zeros(len(cells), num_classes**2 + 1, dtype=torch.int64, device=cells.device)
        matrix.scatter_add_(1, cells, torch.ones((), dtype=torch.int64, device=cells.device).expand_as(cells))
        matrix = matrix[:, :-1].view(-1, num_classes, num_classes)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore, reduction="none").flatten(1)
        dtype = torch.float32 if cells.device.type == "mps" else torch.float64
        parts = (
            matrix.diagonal(dim1=1, dim2=2),
            matrix.sum(dim=1),
            matrix.sum(dim=2),
            losses.sum(dim=1, dtype=dtype).unsqueeze(1),
            valid.flatten(1).sum(dim=1, keepdim=True),
        )
        return torch.cat([part.to(dtype) for part in parts], dim=1)

    def evaluate(self, rows: NDArray[Any], targets: NDArray[Any] | None = None) -> dict[str, float]:
        """Metrics of rows (N, 3K + 2) in the order of their split: see `definitions`. `targets` are not needed.

        `miou_low` and `miou_high` are its 95 % interval over images. Without a valid pixel, or where the loss is
        not finite, every metric is NaN.
        """
        self._check(rows)
        total = mask_metrics.counts_of(rows.sum(axis=0))
        per_image = ("fscore_per_image", "fscore_per_batch")
        names = ("loss", "miou", "fscore", *per_image, "accuracy", "miou_low", "miou_high")
        if not total.num_valid or not math.isfinite(total.loss_sum):
            return dict.fromkeys(names, math.nan)
        values = (
            total.loss_sum / total.num_valid,
            mask_metrics.miou(rows),
            mask_metrics.mean_known(mask_metrics.fscores(total)),
            mask_metrics.fscore_per_image(rows),
            mask_metrics.fscore_per_batch(rows, self.batch_size),
            total.hits.sum() / total.num_valid,
            *mask_metrics.miou_interval(rows),
        )
        return dict(zip(names, map(float, values), strict=True))

    def table(self, rows: NDArray[Any], targets: NDArray[Any] | None = None) -> list[dict[str, Any]]:
        """One row per class: name, iou, fscore, precision, recall, target pixels, images whose mask has the class.

        What is undefined is None: everything of an absent class, precision of one never predicted, recall of one
        without targets. Where the loss is not finite, all but name, pixels and images is None.
        """
        self._check(rows)
        total = mask_metrics.counts_of(rows.sum(axis=0))
        finite = math.isfinite(total.loss_sum)
        images = (mask_metrics.counts_of(rows).wanted > 0).sum(axis=0)
        iou, fscore = mask_metrics.ious(total), mask_metrics.fscores(total)
        found = []
        for k, name in enumerate(self.classes):
            hits, predicted, wanted = total.hits[k], total.predicted[k], total.wanted[k]
            is_absent = not (finite and predicted + wanted)
            found.append(
                {
                    "name": name,
                    "iou": None if is_absent else float(iou[k]),
                    "fscore": None if is_absent else float(fscore[k]),
                    "precision": float(hits / predicted) if finite and predicted else None,
                    "recall": float(hits / wanted) if finite and wanted else None,
                    "pixels": int(wanted),
                    "images": int(images[k]),
                }
            )
        return found

    def scores(self, rows: NDArray[Any]) -> NDArray[Any]:
        """What is kept as predictions: the rows themselves."""
        return rows

    def headline(self, metrics: Mapping[str, float]) -> str:
        m = metrics
        return (
            f"loss {m['loss']:.4f}  mIoU {m['miou']:.4f} [{m['miou_low']:.3f}, {m['miou_high']:.3f}]  "
            f"fscore {m['fscore']:.4f}  accuracy {m['accuracy']:.4f}"
        )

    def _logits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(N, K, h, w) in float32 or better, of the masks' size."""
        assert (
            outputs.shape[:2] == (len(targets), len(self.classes)) and outputs.ndim == 4 and targets.ndim == 3
        ), f"outputs {tuple(outputs.shape)}, masks {tuple(targets.shape)}, {len(self.classes)} classes"
        exact = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return resized(exact, *targets.shape[1:])

    def _check(self, rows: NDArray[Any]) -> None:
        width = 3 * len(self.classes) + 2
        assert len(rows) and rows.shape == (len(rows), width), f"rows {rows.shape}, {width} numbers were due"
