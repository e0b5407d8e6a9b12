"""An ONNX file as a module that answers; onnxruntime's one door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from warmstart.errors import UserError
from warmstart.models.metadata import NAME, classes_in, expand, preprocessing_in

_LEAST = 1e-6  # a label's probability of exactly 0 or 1 would be an infinite logit
_PROBED = 4  # rows of noise, by which probabilities are told from logits


class OnnxModel(nn.Module):
    """Images float32 (N, C, h, w), normalised, to logits; on the CPU, whatever device they come from."""

    def __init__(
        self, session: Any, at_once: int | None, gives_probabilities: bool = False, multi_label: bool = False
    ) -> None:
        super().__init__()
        self._session, self._at_once = session, at_once
        self.gives_probabilities, self._multi_label = gives_probabilities, multi_label
        # Empty: by the parameters of a module one asks to which device its images go.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        array = images.detach().to("cpu", torch.float32).contiguous().numpy()
        name = self._session.get_inputs()[0].name
        size = self._at_once or len(array)
        parts = [self._run({name: part}, size) for part in _parts(array, size)]
        found = torch.from_numpy(np.concatenate(parts)[: len(array)]).to(images.device)
        if not self.gives_probabilities:
            return found
        return (
            found.logit(_LEAST) if self._multi_label else found.clamp_min(torch.finfo(found.dtype).tiny).log()
        )

    def _run(self, given: dict[str, np.ndarray], size: int) -> np.ndarray:
        """The first output; a file of a fixed number of images gets as many."""
        ((name, images),) = given.items()
        missing = size - len(images)
        whole = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return np.asarray(self._session.run(None, {name: whole})[0], np.float32)[: len(images)]


def _parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What a file is and says of itself: `classes` and `stated` (as of safetensors files) by its metadata_props, which
    are `entries`; `size` and `num_channels` by the shape of its input; None where it leaves them open."""

    module: OnnxModel
    classes: tuple[str, ...] | None
    stated: dict[str, Any]
    size: tuple[int, int] | None
    num_channels: int | None
    entries: Mapping[str, str]


def open_onnx(path: Path) -> OnnxFile:
    """Raises UserError: onnxruntime is missing, or the file is no image model that it can run."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError:
        raise UserError(
            f"{path} needs onnxruntime, which is not installed",
            "the package",
            "pip install 'warmstart[onnx]'",
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        errors.Fail,
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
        errors.InvalidArgument,
    ) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be opened: {reason}", "an ONNX file of an image model") from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise UserError(
            f"{path} takes {told or 'nothing'}", "one input of float32 images (N, channels, height, width)"
        )
    number, channels, *size = (side if isinstance(side, int) else None for side in inputs[0].shape)
    metadata = expand(session.get_modelmeta().custom_metadata_map)
    height, width = size
    return OnnxFile(
        OnnxModel(session, number),
        classes_in(metadata, str(path)),
        preprocessing_in(metadata, str(path)),
        None if height is None or width is None else (height, width),
        channels,
        metadata,
    )


def answering(
    file: OnnxFile, num_channels: int, size: tuple[int, int], source: str, multi_label: bool = False
) -> OnnxModel:
    """The model, which gives logits: where noise comes out as probabilities, the logits that have them. A file of ours
    gives logits.

    Raises:
        UserError: the file cannot take such images, or gives something else than (N, K) or (N, K, h, w); probabilities
            of one class where each label has its own (`multi_label`), or the other way round.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    noise = torch.randn((_PROBED, num_channels, *size), generator=torch.Generator().manual_seed(0))
    try:
        found = file.module(noise)
    except (errors.InvalidArgument, errors.Fail, errors.RuntimeException) as error:
        raise UserError(
            f"{source} cannot take images of {num_channels} channels and {size[0]}x{size[1]} pixels: "
            f"{str(error).splitlines()[0]}",
            "the size and channels that it was exported for",
        ) from None
    if found.ndim not in (2, 4) or len(found) != _PROBED:
        raise UserError(
            f"{source} gives {tuple(found.shape)} for {_PROBED} images",
            "scores (N, classes), or of every pixel",
        )
    is_ours = NAME in file.entries  # whose logits may lie between 0 and 1 by chance, behind a ReLU
    are_shares = not is_ours and bool(((found >= 0) & (found <= 1)).all())
    add_up = are_shares and bool(torch.allclose(found.sum(1), torch.ones(()), atol=1e-3))
    if are_shares and add_up == multi_label:
        raise UserError(
            f"{source} gives probabilities of {'one class' if add_up else 'each label by itself'}",
            f"those of {'each label by itself' if multi_label else 'one class'}, as the data have them, or logits",
            "export it without its last softmax or sigmoid, or use a teacher of the same task",
        )
    return OnnxModel(file.module._session, file.module._at_once, are_shares, multi_label)
