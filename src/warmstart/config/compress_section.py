"""The settings of `warmstart compress`: they are its own, and no part of a run's config."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from warmstart.config.section import Section
from warmstart.config.values import Limit, Names, OptionalFloat, OptionalInt
from warmstart.errors import UserError

METHODS = ("prune", "factorise", "sparse", "int8", "qat")
_AMOUNT = re.compile(r"^(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*([a-z%]*)$", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def _parse(units: dict[str, float], example: str, most: float = math.inf) -> Any:
    """A parser of numbers above 0 and below `most` with one of these units; floats have been read before."""

    def parse(value: Any) -> float | None:
        if value is None:
            return value
        if isinstance(value, float):
            number = value
        else:
            found = _AMOUNT.match(str(value).strip().lower())
            number = float(found[1]) * units[found[2]] if found and found[2] in units else 0.0
        if not 0 < number < most:
            raise ValueError(f"{value!r} is not understood; write {example}")
        return number

    return BeforeValidator(parse)


Drop = Annotated[float | None, _parse({"": 1.0, "%": 0.01}, "1% or .01", 1.0)]
Latency = Annotated[float | None, _parse(_SECONDS, "5ms")]
Bytes = Annotated[float | None, _parse(_BYTES, "2MB")]
Macs = Annotated[float | None, _parse(_COUNTS, "30M, or .5 for a half of the original's")]


class CompressConfig(Section):
    """How a model is made smaller."""

    method: Literal["prune", "factorise", "sparse", "int8", "qat"] = Field(
        "prune",
        description="prune (channels), factorise (low rank), sparse (single weights), int8 (after training) or qat"
        " (int8 in training)",
    )
    amount: OptionalFloat = Field(
        None, gt=0, lt=1, description="share to remove: of the MACs, or of the weights (sparse) [default: .5]"
    )
    energy: OptionalFloat = Field(
        None,
        gt=0,
        lt=1,
        description="factorise: share of each layer's squared singular values to keep, instead",
    )
    importance: Literal["l1", "l2", "bn", "taylor", "random"] = Field(
        "taylor", description="prune: what makes a channel important; random is the control"
    )
    scope: Literal["global", "block", "embedding"] = Field(
        "global",
        description="prune, sparse: compare weights across the model, or within each block; prune: embedding takes only"
        " features that the classifier reads, and the amount is the share of these",
    )
    sensitivity: bool = Field(
        False,
        description="prune: measure first what val loses when each block is pruned alone; with --scope block, those"
        " that stand it lose more",
    )
    layers: Names = Field((), description="blocks or layers to compress: names, globs [default: all]")
    keep: Names = Field((), description="blocks or layers to leave as they are; the head always is")
    epochs: int = Field(3, ge=0, description="epochs of recovery after each round; 0: none")
    lr: OptionalFloat = Field(
        None, gt=0, description="learning rate of the recovery [default: the run's own]"
    )
    batch_size: OptionalInt = Field(
        None, ge=1, description="images per step of the recovery [default: the run's own]"
    )
    limit: Limit = Field(None, description="recover on a share (.1) or a number (500) of the training images")
    distil: bool = Field(False, description="the original teaches the recovery")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the recovery and of what is drawn")
    calibration: int = Field(
        256,
        ge=0,
        description="int8, qat: training images that ranges are measured on; prune: those of taylor",
    )
    max_drop: Drop = Field(
        None, description="search: stop before val has lost more than this: 1% (points of the metric)"
    )
    target_latency: Latency = Field(None, description="search: until an image alone takes at most 5ms")
    target_size: Bytes = Field(None, description="search: until the file has at most 2MB")
    target_macs: Macs = Field(
        None, description="search: until an image costs at most 30M MACs, or this share of the original's"
    )
    step: float = Field(0.1, gt=0, lt=1, description="search: share of the original to remove in each round")
    max_rounds: int = Field(9, ge=1, description="search: at most so many rounds")
    data: str | None = Field(None, description="data set, for a file of weights; a run has its own")
    output_dir: str | None = Field(
        None,
        description="new folder of the run, or that of a compression to go on with [default: MODEL-METHOD]",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    workers: int = Field(0, ge=0, description="decoding threads")

    @property
    def searches(self) -> bool:
        """Whether rounds follow each other until something is reached."""
        return any(getattr(self, name) is not None for name in _GOALS)

    @property
    def share(self) -> float:
        """What one round removes of the original, where nothing is searched; int8 leaves every weight in its place."""
        default = 0.0 if self.method in ("int8", "qat") else 0.5
        return default if self.amount is None else self.amount

    @property
    def calibrates(self) -> bool:
        """Whether training images are looked at before anything is trained."""
        return self.method in ("int8", "qat") or (self.method == "prune" and self.importance == "taylor")


_GOALS = ("max_drop", "target_latency", "target_size", "target_macs")
_NOT_BY_ZEROS = {"target_latency": "time", "target_macs": "MACs", "target_size": "bytes"}
# What only some methods read.
_READ_BY = {
    "amount": ("prune", "factorise", "sparse"),
    "energy": ("factorise",),
    "importance": ("prune",),
    "scope": ("prune", "sparse"),
    "sensitivity": ("prune",),
    "layers": ("prune", "factorise", "sparse"),
    "keep": ("prune", "factorise", "sparse"),
    "calibration": ("int8", "qat", "prune"),
    **dict.fromkeys((*_GOALS, "step", "max_rounds"), ("prune", "factorise", "sparse")),
    **dict.fromkeys(
        ("epochs", "lr", "batch_size", "limit", "distil"), ("prune", "factorise", "sparse", "qat")
    ),
}


def problems(settings: CompressConfig) -> list[UserError]:
    """Settings that nothing would read, and such as contradict each other."""
    given = settings.model_fields_set
    found = [
        UserError(
            f"--{_flag(name)} has no use with --method {settings.method}", f"one of {', '.join(methods)}"
        )
        for name, methods in _READ_BY.items()
        if name in given and settings.method not in methods
    ]
    if settings.amount is not None and settings.energy is not None:
        found.append(UserError("--amount beside --energy", "one of the two", "leave one out"))
    if settings.searches and (settings.amount is not None or settings.energy is not None):
        what = "amount" if settings.amount is not None else "energy"
        found.append(
            UserError(f"--{what} beside a search", "--step, the share of each round", f"leave --{what} out")
        )
    if settings.method == "sparse" and settings.scope == "embedding":
        found.append(UserError("--scope embedding with --method sparse", "global or block", "--method prune"))
    found += [
        UserError(
            f"--{_flag(name)} with --method sparse: zeros among the weights save no {saved}",
            "--max-drop, or --amount",
            "--method prune",
        )
        for name, saved in _NOT_BY_ZEROS.items()
        if settings.method == "sparse" and getattr(settings, name) is not None
    ]
    if settings.method == "prune" and "calibration" in given and settings.importance != "taylor":
        found.append(
            UserError(
                f"--calibration has no use with --importance {settings.importance}", "--importance taylor"
            )
        )
    if settings.method == "int8" and "seed" in given and settings.data is None:
        found.append(
            UserError("--seed has no use with --method int8 of a run: nothing is drawn", "leave it out")
        )
    unread = {name: "without a search" for name in ("step", "max_rounds") if not settings.searches}
    if not settings.epochs:
        unread |= dict.fromkeys(
            ("lr", "batch_size", "limit", "distil"), "with --epochs 0: nothing is trained"
        )
    found += [
        UserError(f"--{_flag(name)} {why}", "--max-drop or --target-..." if "search" in why else "--epochs 1")
        for name, why in unread.items()
        if name in given and settings.method in _READ_BY[name]
    ]
    return found


def _flag(name: str) -> str:
    return name.replace("_", "-")
