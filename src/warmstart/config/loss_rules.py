"""Cross-field rules of the loss of masks. Whether a run has masks only its data say: see `tasks.task.make_task`."""

from __future__ import annotations

from warmstart.config.schema import TaskConfig
from warmstart.errors import UserError


def loss_problems(task: TaskConfig) -> list[UserError]:
    """A loss of which every part has the weight 0."""
    if task.ce_weight or task.dice_weight or task.lovasz_weight or task.tversky_weight:
        return []
    return [
        UserError(
            "--ce-weight 0, and no other part of the loss has a weight: there would be nothing to learn",
            "a weight above 0 for one of them",
            "for example --dice-weight 1, or leave --ce-weight out",
        )
    ]


def unread_loss_settings(task: TaskConfig) -> dict[str, str]:
    """Leaf of the section -> why a run of masks does not read it."""
    found: dict[str, str] = {}
    if task.loss != "focal":
        found |= dict.fromkeys(("focal_gamma", "focal_alpha"), f"with --loss {task.loss} (read by focal)")
    if not task.ce_weight:
        of_pixels = ("loss", "focal_gamma", "focal_alpha", "label_smoothing", "class_weights")
        found |= dict.fromkeys(of_pixels, "with --ce-weight 0")
    if not task.dice_weight and not task.tversky_weight:
        found["dice_classes"] = "without --dice-weight or --tversky-weight"
    if not task.tversky_weight:
        found["tversky_alpha"] = "without --tversky-weight"
    return found
