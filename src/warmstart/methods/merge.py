"""Adapters merged into the weights that they stand beside: a plain file, measured against the unmerged model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference, recorded_thresholds, resolve_weights
from warmstart.models.adapters.base import on_base
from warmstart.models.adapters.four_bit import fitting_layers, in_floats, in_four_bits, quantisation_errors
from warmstart.models.adapters.inject import merged
from warmstart.models.build import BuiltModel, build, metadata_for, no_adapters
from warmstart.models.tensor_file import TensorFile
from warmstart.models.weights import read_weights
from warmstart.run import writer
from warmstart.shown import Shown

_NUM_PROBES = 4
_ROUNDING = 1e-3  # of the largest logit


@dataclass(frozen=True)
class MergeRequest:
    """What was asked for. `base`: a file, a run or a zoo's name, for an adapter folder on another one than it names."""

    model: str
    base: str | None = None
    to: str | None = None
    force: bool = False
    bits: int | None = None


@dataclass(frozen=True)
class Merged(Shown):
    """What was merged into `file`, and how far it is from the unmerged model: `difference` is the largest of logits.

    `errors` are ||W - W'|| / ||W|| by layer, where merged weights were put into 4 bits.
    """

    model: str
    file: str
    base: str
    name: str
    num_layers: int
    num_bytes: int
    num_bytes_before: int
    num_probes: int
    difference: float
    largest_logit: float
    same_answers: float
    errors: dict[str, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [
            f"{self.model}: {self.num_layers} adapted layers of {self.name} merged",
            *self.notes,
            f"base  {self.base}",
            f"file  {self.file}: {self.num_bytes / 1e6:.1f} MB, {self.num_bytes_before / 1e6:.1f} MB unmerged",
            f"check the file against the unmerged model, {self.num_probes} probe inputs: largest difference of logits "
            f"{self.difference:.2g} (largest logit {self.largest_logit:.3g}), same answers {self.same_answers:.0%}",
        ]
        if self.errors:
            worst = max(self.errors, key=lambda path: self.errors[path])
            mean = sum(self.errors.values()) / len(self.errors)
            lines.append(
                f"bits  {len(self.errors)} layers stored in 4 bits: relative error of the merged weights {mean:.3f}, "
                f"largest {self.errors[worst]:.3f} ({worst}); whoever reads the file computes in floating point"
            )
        return "\n".join([*lines, f"look: warmstart evaluate {self.file} --data DATA"])


def merge(request: MergeRequest, device: torch.device) -> Merged:
    """Write the plain weights of a run with adapters, or of an adapter folder, and read them back to compare.

    Raises:
        UserError: nothing to merge, a base that is not the adapter's own, or a file that is there already.
    """
    if request.bits not in (None, 4):
        raise UserError(f"--bits {request.bits}", "4, or no --bits for the weights' own type")
    reference = resolve_weights(request.model)
    target = _target(request, reference)
    built, label = _open(request, reference)
    if built.lora is None:
        raise UserError(
            f"{label} has no adapters to merge",
            "a run of `warmstart finetune --lora.rank R`, or an adapter folder",
            "its weights are plain already",
        )
    built.move_to(device)
    before = {name: tensor.cpu().contiguous() for name, tensor in built.module.state_dict().items()}
    plain = merged(in_floats(before), built.lora)
    stored, errors = plain, {}
    if request.bits is not None:
        stored = in_four_bits(plain, fitting_layers(plain, built.lora.targets))
        errors = quantisation_errors(stored)
    chosen = recorded_thresholds(reference, built.classes) or built.thresholds
    metadata = metadata_for(replace(built, thresholds=chosen, lora=None, base=None))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer.write_whole(target, TensorFile(stored, metadata))
    again = build(ModelConfig(weights=str(target)), {}, None, 0)
    again.move_to(device)
    wanted, found = (_logits(model, device) for model in (built, again))
    difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    if request.bits is None and not difference <= _ROUNDING * largest:
        target.unlink()
        raise UserError(
            f"merged, {label} gives other logits: {difference:.2g} apart, where the largest is {largest:.2g}",
            "the same answers to rounding",
            "evaluate and predict take the run or the adapter folder itself",
        )
    return Merged(
        model=label,
        file=str(target),
        base="" if built.base is None else built.base.path or f"{built.base.kind} weights",
        name=built.name,
        num_layers=len(built.lora.targets),
        num_bytes=_num_bytes(stored),
        num_bytes_before=_num_bytes(before),
        num_probes=_NUM_PROBES,
        difference=difference,
        largest_logit=largest,
        same_answers=float((found.argmax(1) == wanted.argmax(1)).double().mean()),
        errors=errors,
        notes=(*built.notes, *_lost(reference)),
    )


def _lost(reference: WeightsReference) -> tuple[str, ...]:
    """What a run knows and the file does not say."""
    found = None if reference.run is None else reference.run.thresholds
    if found is None or found["step"] == reference.step:
        return ()
    return (
        f"every label answers from .5 on: the thresholds that val chose are those of step {found['step']}",
    )


def _target(request: MergeRequest, reference: WeightsReference) -> Path:
    """Where to write: as asked, else beside the run or the folder. UserError: something is there already."""
    source = Path(request.model).expanduser() if reference.run is None else reference.run.path
    source = source.resolve() if source.name in ("", "..") else source
    name = source.stem if source.is_file() else source.name
    target = Path(request.to) if request.to else source.with_name(f"{name}-merged.safetensors")
    if target.suffix != ".safetensors":
        raise UserError(f"--to {target}", "a name that ends in .safetensors")
    if target.exists():
        raise UserError(f"{target} exists already", "a new file", "--to FILE.safetensors")
    return target


def _open(request: MergeRequest, reference: WeightsReference) -> tuple[BuiltModel, str]:
    """The model with its adapters, and what to call it."""
    file = read_weights(str(reference.file))
    if file.adapter is not None:
        given = None if request.base is None else resolve_weights(request.base).file
        file = on_base(file, None, partial(build, choose=no_adapters), given, request.force)
    elif request.base is not None:
        raise UserError(
            f"--base {request.base}: {request.model} holds its base itself",
            "--base for an adapter folder alone",
            "leave it out",
        )
    label = request.model if reference.run is None else f"{reference.run.path}@{reference.step}"
    return build(file, {}, None, 0), label


@torch.no_grad()
def _logits(built: BuiltModel, device: torch.device) -> Tensor:
    """(N, K, ...) in float32, of inputs drawn from a normal distribution: as images are, once they are normalised."""
    shape = (_NUM_PROBES, built.preprocessing.num_channels, *built.preprocessing.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    module: nn.Module = built.module.eval()
    logits: Tensor = module(images)
    return logits.float().cpu()


def _num_bytes(state: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in state.values())
