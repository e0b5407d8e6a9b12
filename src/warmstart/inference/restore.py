"""A run directory, a step of it, or a file of weights -> a model ready to evaluate and predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference, resolve_weights
from warmstart.models.build import BuiltModel, build


@dataclass(frozen=True)
class Restored:
    """The model in evaluation mode on its device, and where it came from."""

    built: BuiltModel
    reference: WeightsReference
    overridden: bool  # its preprocessing was changed by hand: what it scores is not the run's own result

    @property
    def names_known(self) -> bool:
        """Whether the classes are names from the run or the file, and not just numbers of outputs."""
        return self.built.names_known

    @property
    def native(self) -> bool:
        """Whether an image of exactly the input's size is taken as it is: as in training, and for bare files."""
        run = self.reference.run
        return run is None or bool(run.resolved["data"]["native"])

    @property
    def precision(self) -> torch.dtype | None:
        """The arithmetic of the run's own validations, where this device has it; float32 for bare files."""
        run = self.reference.run
        recorded = "float32" if run is None else run.resolved["precision"]
        on_cuda = next(self.built.module.parameters()).device.type == "cuda"
        return getattr(torch, recorded) if recorded != "float32" and on_cuda else None

    @property
    def label(self) -> str:
        """`RUN@step`, or the file."""
        if self.reference.run is not None:
            return f"{self.reference.run.path}@{self.reference.step}"
        return str(self.built.source["path"])


def restore(
    model: str, device: torch.device, name: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Restored:
    """Load `model` with its own classes; `name` says which architecture where the file does not.

    Raises:
        UserError: no such run, step or file, a damaged one, or weights of another architecture.
    """
    if not model:
        raise UserError("no model is named", "a run directory, RUN@step, or a file of weights")
    reference = resolve_weights(model)
    built = build(ModelConfig(name=name, weights=reference.file), overrides or {}, None, seed=0)
    layout = torch.channels_last if built.channels_last else torch.contiguous_format
    built.module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    built.module.eval()
    return Restored(built, reference, bool(overrides))
