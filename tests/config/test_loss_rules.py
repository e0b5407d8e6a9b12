"""loss_rules.py: parts of a loss that contradict each other or that nothing reads."""

from __future__ import annotations

from typing import Any

import pytest

from warmstart.config.rules import problems, warnings
from warmstart.config.schema import Config


def _config(**task: Any) -> Config:
    return Config.model_validate({"task": task})


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"focal_gamma": 1}, "--focal-gamma has no effect with --loss cross_entropy"),
        ({"focal_alpha": 1}, "--focal-alpha has no effect with --loss cross_entropy"),
        ({"dice_classes": "all"}, "--dice-classes has no effect without --dice-weight or --tversky-weight"),
        ({"tversky_alpha": 0.5, "dice_weight": 1}, "--tversky-alpha has no effect without --tversky-weight"),
        ({"ce_weight": 0, "dice_weight": 1, "label_smoothing": 0.1}, "--label-smoothing has no effect with"),
        ({"ce_weight": 0, "dice_weight": 1, "loss": "focal"}, "--loss has no effect with --ce-weight 0"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_named(task: dict[str, Any], words: str) -> None:
    assert any(words in warning for warning in warnings(_config(**task), {}))


@pytest.mark.parametrize(
    "task",
    [
        {"loss": "focal", "focal_gamma": 1, "focal_alpha": 1},
        {"dice_weight": 1, "dice_classes": "all"},
        {"tversky_weight": 1, "dice_classes": "all", "tversky_alpha": 0.5},
        {"ce_weight": 0, "lovasz_weight": 1},
    ],
)
def test_settings_in_force_are_not(task: dict[str, Any]) -> None:
    assert warnings(_config(**task), {}) == []
    assert not any("--ce-weight" in str(problem) for problem in problems(_config(**task), {}))


def test_a_loss_without_a_part_is_refused() -> None:
    assert any("nothing to learn" in str(problem) for problem in problems(_config(ce_weight=0), {}))
