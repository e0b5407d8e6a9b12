"""int8 after training: a float ONNX file and calibration images -> quantised candidates, by ONNX Runtime.

Q and DQ stand around what is computed in integers (QDQ); activations are uint8, weights int8. How weights share scales
(per channel or per tensor) and whether they keep 8 bits or 7 (processors without VNNI add two products of 8 bits in
16, and saturate) depends on the model and on the processor: all four are made, and measuring decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from warmstart.errors import UserError
from warmstart.methods.export.onnx_file import IMAGES, quiet


@dataclass(frozen=True)
class Form:
    """How weights become integers."""

    per_channel: bool
    reduce_range: bool

    @property
    def name(self) -> str:
        return f"{'per channel' if self.per_channel else 'per tensor'}, {7 if self.reduce_range else 8} bits"


# Where val tells no difference, the first is taken: the fewer scales, the faster; 7 bits compute alike everywhere.
FORMS = tuple(Form(*pair) for pair in ((False, True), (False, False), (True, True), (True, False)))


def quantise_static(
    source: Path, images: Iterable[Tensor], folder: Path, forms: Iterable[Form] = FORMS
) -> Iterator[tuple[Form, Path]]:
    """Make `source` int8 in each form, one after the other, as files in `folder`, with all that it says of itself.

    Ranges are the smallest and largest numbers that the images, normalised (N, C, h, w), bring anywhere.

    Raises:
        UserError: onnx or onnxruntime is missing.
    """
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise UserError(
            "int8 needs onnx and onnxruntime, which are not installed",
            "the packages",
            "pip install 'warmstart[onnx]'",
        ) from None

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: np.ascontiguousarray(batch.cpu().numpy())}

    prepared, ranges = folder / "prepared.onnx", folder / "ranges.json"
    ranges.unlink(missing_ok=True)
    with quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    said = [(entry.key, entry.value) for entry in onnx.load(source).metadata_props]
    for form in forms:
        file = folder / f"{form.name.replace(', ', '-').replace(' ', '-')}.onnx"
        with quiet():
            quantization.quantize_static(
                str(prepared),
                str(file),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=form.per_channel,
                reduce_range=form.reduce_range,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibration_cache_path=ranges,  # measured for the first form only
            )
        made = onnx.load(file)
        del made.metadata_props[:]
        for key, value in said:
            made.metadata_props.add(key=key, value=value)
        onnx.save(made, file)
        yield form, file


def grids_in(file: Path) -> dict[str, dict[str, Any]]:
    """Scale and zero point (lists of them, per channel) of every tensor that a file of Q and DQ keeps in integers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    numbers = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        is_weight = node.op_type == "DequantizeLinear" and node.input[0] in numbers
        if node.op_type == "QuantizeLinear" or is_weight:
            parts = [numpy_helper.to_array(numbers[name]) for name in node.input[1:]]
            kind = onnx.TensorProto.DataType.Name(numbers[node.input[2]].data_type).lower()
            found[node.input[0]] = {"type": kind, "scale": parts[0].tolist(), "zero_point": parts[1].tolist()}
    return found


def grids_text(file: Path) -> str:
    """As JSON, a tensor in a row."""
    rows = (f" {json.dumps(name)}: {json.dumps(grid)}" for name, grid in grids_in(file).items())
    return "{\n" + ",\n".join(rows) + "\n}\n"
