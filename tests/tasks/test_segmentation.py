"""segmentation.py and its settings: counts and metrics against scikit-learn, torchmetrics and loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from warmstart.config.schema import SELECTION_METRICS, Config, DataConfig, TaskConfig
from warmstart.errors import UserError
from warmstart.tasks.classification import Classification
from warmstart.tasks.mask_objectives import MaskLoss
from warmstart.tasks.multilabel import MultiLabel
from warmstart.tasks.segmentation import Segmentation
from warmstart.tasks.task import MASK_SETTINGS, Task, make_task, resolve_metric

CLASSES = ("sky", "road", "car", "tram", "person")
K = len(CLASSES)
TASK = Segmentation(CLASSES)


def _batch(num: int = 6, seed: int = 0, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Trams are neither there nor predicted, persons are never there; image 2 is ignored as a whole."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (num, 9, 7), generator=generator)
    logits = torch.randn(num, K, 9, 7, generator=generator) * scale
    logits += 1.5 * F.one_hot(targets, K).permute(0, 3, 1, 2)
    logits[:, 3] = -9
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = 255
    targets[2:3] = 255
    return logits, targets.to(torch.uint8)


def _rows(logits: torch.Tensor, targets: torch.Tensor, task: Segmentation = TASK) -> np.ndarray:
    return task.statistics(logits, targets).numpy()


# ---- statistics


def test_a_row_holds_the_confusion_matrix_of_its_image() -> None:
    logits, targets = _batch()
    rows = _rows(logits, targets)
    assert rows.shape == (6, 3 * K + 2) and rows.dtype == np.float64
    predicted = logits.argmax(1)
    for index, row in enumerate(rows):
        valid = targets[index] != 255
        if not valid.any():
            assert not row.any()
            continue
        matrix = confusion_matrix(targets[index][valid], predicted[index][valid], labels=range(K))
        parts = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
        assert row[: 3 * K].tolist() == np.concatenate(parts).tolist()
        one = slice(index, index + 1)
        plain = F.cross_entropy(logits[one].double(), targets[one].long(), ignore_index=255, reduction="sum")
        assert row[-2] == pytest.approx(plain.item(), rel=1e-6) and row[-1] == valid.sum()


def test_the_loss_in_the_rows_is_plain() -> None:
    """No weights, smoothing or Dice: so runs can be compared."""
    logits, targets = _batch()
    other = Segmentation(CLASSES, 255, 0.3, (1, 2, 3, 4, 5), MaskLoss("focal", dice_weight=1))
    assert (_rows(logits, targets, other) == _rows(logits, targets)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_smaller_outputs_are_resized(dtype: torch.dtype) -> None:
    logits, targets = _batch()
    small = logits[..., :5, :4].to(dtype)
    exact = small.to(torch.promote_types(dtype, torch.float32))
    large = F.interpolate(exact, (9, 7), mode="bilinear", align_corners=False)
    assert (_rows(small, targets) == _rows(large, targets)).all()
    for found, expected in zip(TASK.objective(small, targets), TASK.objective(large, targets), strict=True):
        assert found.item() == expected.item()


def test_an_empty_batch_and_no_host_sync() -> None:
    logits, targets = _batch()
    assert TASK.statistics(logits[:0], targets[:0]).shape == (0, 3 * K + 2)
    on_meta = TASK.statistics(logits.to("meta"), targets.to("meta"))
    assert on_meta.device.type == "meta" and on_meta.shape == (6, 3 * K + 2)


def test_an_ignored_class_and_wide_ids() -> None:
    logits, targets = _batch()
    zero = Segmentation(CLASSES, ignore=0)
    wide = torch.where(targets == 255, 0, targets.to(torch.int32)).to(torch.int32)
    expected = torch.where(wide == 0, 255, wide)
    assert (_rows(logits, wide, zero) == _rows(logits, expected)).all()
    assert _rows(logits, wide, zero)[:, 2 * K].sum() == 0


# ---- metrics


def _flat() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, targets = _batch()
    valid = targets != 255
    return _rows(logits, targets), targets[valid].numpy(), logits.argmax(1)[valid].numpy()


def test_metrics_equal_scikit_learn_and_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    rows, wanted, predicted = _flat()
    assert 4 in predicted and 4 not in wanted and 3 not in predicted
    found = TASK.evaluate(rows)
    known = [0, 1, 2, 4]  # persons are predicted and never there: 0, not absent
    assert found["miou"] == pytest.approx(jaccard_score(wanted, predicted, labels=known, average="macro"))
    assert found["fscore"] == pytest.approx(f1_score(wanted, predicted, labels=known, average="macro"))
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, predicted))
    logits, targets = _batch()
    reference = multiclass_jaccard_index(
        logits.argmax(1), targets.long(), K, average="none", ignore_index=255
    )
    assert found["miou"] == pytest.approx(reference[known].mean().item(), abs=1e-6)
    plain = F.cross_entropy(logits.double(), targets.long(), ignore_index=255)
    assert found["loss"] == pytest.approx(plain.item(), rel=1e-6)
    assert found["miou_low"] < found["miou"] < found["miou_high"]
    assert TASK.evaluate(rows, targets.numpy()) == found
    assert {"miou_low", "miou_high", *TASK.metrics} == set(found) and set(TASK.definitions) == set(
        TASK.metrics
    )


def _mean_f_of_batches(logits: torch.Tensor, targets: torch.Tensor, batch_size: int) -> tuple[float, int]:
    """Document 002's own loop, from pixels: classes in the ground truth only; and how many batches had one."""
    predicted, wanted = logits.argmax(1).numpy(), targets.numpy()
    per_batch = []
    for start in range(0, len(wanted), batch_size):
        mask = wanted[start : start + batch_size].ravel()
        valid = mask != 255
        said, mask = predicted[start : start + batch_size].ravel()[valid], mask[valid]
        scores = []
        for k in np.unique(mask):
            hits = ((said == k) & (mask == k)).sum()
            precision, recall = hits / max(1, (said == k).sum()), hits / (mask == k).sum()
            scores.append(2 * precision * recall / max(1e-300, precision + recall))
        per_batch += [np.mean(scores)] if scores else []
    return float(np.mean(per_batch)), len(per_batch)


def test_the_documents_f_score_is_a_mean_over_batches() -> None:
    logits, targets = _batch(11)
    targets[3, :, :] = torch.where(
        targets[3] == 2, 1, targets[3]
    )  # an image, and a batch of one, without class 2
    logits[9:, 0] = -9  # where class 0 is never found: it has 0
    rows = _rows(logits, targets)
    values = {}
    for size, num in ((1, 10), (2, 6), (4, 3), (5, 3), (11, 1), (64, 1)):
        values[size], counted = _mean_f_of_batches(logits, targets, size)
        assert counted == num, (
            "the image that is ignored as a whole is a batch without a term when it is alone"
        )
        found = replace(TASK, batch_size=size).evaluate(rows)
        assert found["fscore_per_batch"] == pytest.approx(values[size], rel=1e-12)
        assert found["fscore_per_image"] == pytest.approx(values.get(1), rel=1e-12)
    assert len({round(value, 4) for value in values.values()}) == 5, "it is a number of the batch size"
    assert values[11] > TASK.evaluate(rows)["fscore"], "which has a term for persons, who are predicted only"
    words = replace(TASK, batch_size=4).definitions
    assert "batches of 4 images" in words["fscore_per_batch"] and words != TASK.definitions


def test_the_metrics_do_not_depend_on_how_the_model_was_fed() -> None:
    logits, targets = _batch()
    parts = [_rows(logits[cut], targets[cut]) for cut in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert TASK.evaluate(np.concatenate(parts)) == pytest.approx(TASK.evaluate(_rows(logits, targets)))


def test_the_table_has_a_row_per_class() -> None:
    rows, wanted, predicted = _flat()
    table = TASK.table(rows)
    assert [row["name"] for row in table] == list(CLASSES) and set(table[0]) == {"name", *TASK.columns}
    for k, row in enumerate(table[:3]):
        assert row["iou"] == pytest.approx(jaccard_score(wanted == k, predicted == k))
        assert row["fscore"] == pytest.approx(f1_score(wanted == k, predicted == k))
        assert row["precision"] == pytest.approx((predicted[wanted == k] == k).sum() / (predicted == k).sum())
        assert row["recall"] == pytest.approx((predicted[wanted == k] == k).mean())
        assert (row["pixels"], row["images"]) == ((wanted == k).sum(), 5)
    nothing = {"iou": None, "fscore": None, "precision": None, "recall": None, "pixels": 0, "images": 0}
    assert table[3] == {"name": "tram", **nothing}
    assert table[4] == {"name": "person", **nothing, "iou": 0, "fscore": 0, "precision": 0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_metrics(value: float) -> None:
    logits, targets = _batch()
    targets[0, 0, 0] = 1
    logits[0, 2, 0, 0] = value
    found = TASK.evaluate(_rows(logits, targets))
    assert list(found) == list(TASK.evaluate(_rows(*_batch()))) and all(map(math.isnan, found.values()))
    row = TASK.table(_rows(logits, targets))[1]
    assert row["pixels"] > 0 and row["iou"] is row["precision"] is row["recall"] is None
    targets[0, 0, 0] = 255  # where it is ignored, nobody asks
    assert math.isfinite(TASK.evaluate(_rows(logits, targets))["miou"])


def test_masks_without_a_valid_pixel_and_perfect_ones() -> None:
    logits, targets = _batch()
    nothing = TASK.evaluate(_rows(logits, torch.full_like(targets, 255)))
    assert all(map(math.isnan, nothing.values()))
    perfect = F.one_hot(targets.long().clamp(max=K - 1), K).permute(0, 3, 1, 2) * 50.0
    found = TASK.evaluate(_rows(perfect, targets))
    assert [found[name] for name in ("miou", "fscore", "fscore_per_image", "fscore_per_batch")] == [1] * 4
    assert found["accuracy"] == 1
    assert (found["miou_low"], found["miou_high"]) == (1, 1)
    with pytest.raises(AssertionError, match="17 numbers were due"):
        TASK.evaluate(np.zeros((2, 14)))


def test_predictions_keep_the_rows_and_the_headline_names_the_metrics() -> None:
    rows = _rows(*_batch())
    assert TASK.scores(rows) is rows
    line = TASK.headline(TASK.evaluate(rows))
    assert "mIoU" in line and "fscore" in line and "loss" in line and "accuracy" in line


# ---- the objective


def test_the_objective_is_the_loss_that_was_asked_for() -> None:
    logits, targets = _batch()
    task = Segmentation(CLASSES, 255, 0.1, (1.0, 2.0, 0.5, 1.0, 1.0), MaskLoss(dice_weight=1.5))
    loss_sum, weight = task.objective(logits, targets)
    weights = torch.tensor(task.class_weights)
    plain = F.cross_entropy(logits, targets.long(), weights, ignore_index=255, label_smoothing=0.1)
    dice_sum, pixels = Segmentation(CLASSES, loss=MaskLoss(ce_weight=0, dice_weight=1)).objective(
        logits, targets
    )
    assert pixels == (targets != 255).sum()
    expected = plain + 1.5 * dice_sum / pixels
    assert (loss_sum / weight).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_learns_masks() -> None:
    """A 1x1 convolution finds the classes of coloured pixels, with every loss at once."""
    targets = torch.randint(3, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    images = F.one_hot(targets, 3).permute(0, 3, 1, 2).float()
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 1)
    loss = MaskLoss("focal", dice_weight=1, lovasz_weight=1, tversky_weight=1)
    task = Segmentation(("a", "b", "c"), loss=loss)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        loss_sum, weight = task.objective(model(images), targets)
        optimizer.zero_grad()
        (loss_sum / weight).backward()
        optimizer.step()
    assert task.evaluate(task.statistics(model(images), targets).detach().numpy())["miou"] == 1


# ---- from settings


def _make(
    ignore: int | None = 255, targets: np.ndarray | None = None, batch_size: int = 32, **settings: object
) -> Task:
    counts = dict(zip((*CLASSES, "(ignored)"), (600, 300, 60, 20, 20, 77), strict=True))
    hot = np.ones((3, K), np.uint8) if targets is None else targets
    config = Config(data=DataConfig(batch_size=batch_size), task=TaskConfig(**settings))
    return make_task(config, CLASSES, hot, counts, ignore)


def test_an_ignore_id_makes_it_a_segmentation() -> None:
    assert _make() == Segmentation(CLASSES, 255)
    assert _make(batch_size=7) == Segmentation(CLASSES, 255, batch_size=7)
    assert isinstance(_make(ignore=None), MultiLabel)
    assert isinstance(_make(ignore=None, targets=np.arange(5)), Classification)
    settings = {
        "loss": "focal", "focal_gamma": 1, "focal_alpha": 0.5, "ce_weight": 0.5, "dice_weight": 1.5,
        "dice_classes": "all", "lovasz_weight": 0.25, "tversky_weight": 0.75, "tversky_alpha": 0.6,
    }  # fmt: skip
    assert set(settings) == set(MASK_SETTINGS)
    expected = MaskLoss("focal", 1, 0.5, 0.5, 1.5, "all", 0.25, 0.75, 0.6)
    assert _make(ignore=0, label_smoothing=0.1, **settings) == Segmentation(CLASSES, 0, 0.1, None, expected)


@pytest.mark.parametrize(
    ("changed", "common"),
    [
        ({"label_smoothing": 0.1}, {}),
        ({"class_weights": "balanced"}, {}),
        ({"loss": "focal"}, {}),
        ({"focal_gamma": 1}, {"loss": "focal"}),
        ({"focal_alpha": 1}, {"loss": "focal"}),
        ({"ce_weight": 0.5}, {}),
        ({"dice_weight": 1}, {}),
        ({"dice_classes": "all"}, {"dice_weight": 1}),
        ({"dice_classes": "all"}, {"tversky_weight": 1}),
        ({"lovasz_weight": 1}, {}),
        ({"tversky_weight": 1}, {}),
        ({"tversky_alpha": 0.5}, {"tversky_weight": 1}),
    ],
)
def test_every_setting_changes_the_loss(changed: dict[str, object], common: dict[str, object]) -> None:
    logits, targets = _batch()
    one, other = (
        _make(**settings).objective(logits, targets) for settings in (common, {**common, **changed})
    )
    assert (one[0] / one[1]).item() != pytest.approx((other[0] / other[1]).item(), rel=1e-3)


def test_the_defaults_of_the_schema_are_those_of_the_loss() -> None:
    assert _make().loss == MaskLoss()


def test_balanced_weights_count_pixels() -> None:
    assert _make(class_weights="balanced").class_weights == pytest.approx((1 / 3, 2 / 3, 10 / 3, 10, 10))
    assert _make(class_weights="tram=4").class_weights == (1, 1, 1, 4, 1)
    with pytest.raises(UserError, match="no class is named 'tran'"):
        _make(class_weights="tran=4")


@pytest.mark.parametrize("targets", [np.arange(5), np.ones((3, K), np.uint8)])
def test_settings_of_masks_are_refused_elsewhere(targets: np.ndarray) -> None:
    with pytest.raises(
        UserError, match=r"--dice-weight 1.5 is for masks, and these data are(.|\n)*dice_weight out"
    ):
        _make(None, targets, dice_weight=1.5)
    with pytest.raises(UserError, match="2 problems in the section task") as caught:
        _make(None, targets, loss="focal", focal_gamma=1)
    assert "--loss focal" in str(caught.value) and "--focal-gamma 1" in str(caught.value)
    _make(None, targets, dice_weight=0)


def test_the_metric_that_selects() -> None:
    assert resolve_metric("auto", TASK) == "miou"
    for name in TASK.metrics:
        assert resolve_metric(name, TASK) == name and name in SELECTION_METRICS
    with pytest.raises(UserError, match="--select-by f1: a run of segmentation does not measure it"):
        resolve_metric("f1", TASK)
    with pytest.raises(UserError, match="--select-by miou: a run of multi-label"):
        resolve_metric("miou", MultiLabel(CLASSES))
