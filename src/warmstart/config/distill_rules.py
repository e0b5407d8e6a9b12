"""Rules for the section `distill`. No torch."""

from __future__ import annotations

from pathlib import Path

from warmstart.config.places import expanded
from warmstart.config.schema import Config
from warmstart.errors import UserError

ONNX = ".onnx"


def distill_problems(config: Config) -> list[UserError]:
    distill = config.distill
    if not distill.teacher:
        return [
            UserError(
                f"--distill.{name} without --teacher",
                "the model whose answers are learned",
                "name it with --teacher RUN",
            )
            for name, field in type(distill).model_fields.items()
            if getattr(distill, name) != field.default
        ]
    found = []
    if not distill.alpha and not distill.hints:
        found.append(
            UserError(
                "--distill.alpha 0 without --distill.hints: nothing is learned from the teacher",
                "a weight above 0 for one of them",
                "leave --teacher out",
            )
        )
    if distill.hints:
        found += [
            UserError(
                f"--distill.hints looks into the student's blocks, and {flag} computes them otherwise",
                "one of the two",
                f"leave {flag} out",
            )
            for flag, is_set in (
                ("--compile", config.train.compile),
                ("--gradient-checkpointing", config.train.gradient_checkpointing),
            )
            if is_set
        ]
        found += [
            UserError(
                f"--distill.hints: {name} is an ONNX file, which gives answers and no maps",
                "teachers that are runs or files of weights",
                "leave --distill.hints out",
            )
            for name in distill.teacher
            if is_onnx(name)
        ]
    if config.text.captions is not None:
        found.append(
            UserError(
                "--teacher answers about classes, and --text.captions are none",
                "one of the two",
                "leave --text.captions out",
            )
        )
    if len(set(distill.teacher)) != len(distill.teacher):
        found.append(UserError("--teacher names a model twice", "each model once"))
    return found


def is_onnx(name: str) -> bool:
    return Path(expanded(name)).suffix.lower() == ONNX


def unread_distill_settings(config: Config) -> dict[str, str]:
    """Path of a setting -> why nothing reads it."""
    distill = config.distill
    if not distill.teacher:
        return {}
    found = {} if distill.alpha else {"distill.temperature": "with --distill.alpha 0"}
    if config.data.mixup or config.data.cutmix:
        found["data.views"] = "with --mixup or --cutmix, whose pairs are others in every epoch"
    return found
