"""A model as an ONNX file: any number of images in one input, logits out, and everything it says of itself inside.

The graph takes what the module takes: float32 images (N, C, h, w), normalised. It is what torch.export traces, with the
size of the batch left open.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from warmstart.errors import UserError
from warmstart.methods.export.integers import in_integers
from warmstart.models.build import BuiltModel, metadata_for
from warmstart.models.image_text.model import ContrastiveModel, with_fixed_texts
from warmstart.models.metadata import expand

_MOST_BYTES = 2**31 - 2**20  # of a protobuf message, with some room for the graph
IMAGES, LOGITS = "images", "logits"  # the names of the graph's input and output
# What torch says of an operator that ONNX has no word for, and of a line that cannot be traced.
_OPERATOR = re.compile(r"op='([\w.:]+)'|target=torch\.ops\.([\w.]+)")
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)')


def write_onnx(
    built: BuiltModel, path: Path, *, batch: int = 2, beside: Mapping[str, str] | None = None
) -> None:
    """Write `built` to one file, whatever device it is on; `beside` are further entries of its metadata.

    `batch` is the number of images it is traced with. One would be taken for a constant.

    Raises:
        UserError: onnx or onnxscript is missing, or the model does what the tracer or ONNX has no word for.
    """
    try:
        import onnxscript  # noqa: F401 (torch.onnx imports it)
    except ImportError:
        raise UserError(
            f"{path} needs onnxscript, which is not installed", "the package", "pip install 'warmstart[onnx]'"
        ) from None
    module, images = for_tracing(built, batch)
    if (num_bytes := sum(tensor.nbytes for tensor in module.state_dict().values())) > _MOST_BYTES:
        raise UserError(
            f"{built.name} has {num_bytes / 1e9:.1f} GB of weights",
            "at most 2 GB in one ONNX file",
            "--to torch-export",
        )
    try:
        # The layout of fused attention's output, which a reshape may rely on, is not that of what ONNX makes of it.
        with quiet(), sdpa_kernel(SDPBackend.MATH):
            program = torch.onnx.export(
                module,
                (images,),
                dynamo=True,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise untraceable(built, "ONNX", error) from error
    assert program is not None
    first = program.model.graph.inputs[0]
    if first.shape is None or isinstance(first.shape[0], int):  # torch falls back on this in silence
        raise _of_one_size(built)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # torch's notes on each: lines of code, by their paths on this machine
    program.model.metadata_props.update({**expand(metadata_for(built)), **(beside or {})})
    program.save(path, external_data=False)


def for_tracing(built: BuiltModel, batch: int) -> tuple[nn.Module, torch.Tensor]:
    """A copy of the module in evaluation mode, on the CPU, in float32 and plain memory layout; and images for it.

    What was trained for int8 computes with integers there.
    """
    module = copy.deepcopy(built.module)
    if isinstance(module, ContrastiveModel):
        module = with_fixed_texts(module)
    module.to(device="cpu", dtype=torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    in_integers(module.eval())
    shape = (batch, built.preprocessing.num_channels, *built.preprocessing.image_size)
    return module, torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters print, log and warn of, which is about their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _of_one_size(built: BuiltModel) -> UserError:
    return UserError(
        f"{built.name} can be exported for one number of images only: its code counts on it",
        "a forward pass for any number of images",
        "write x.shape[0] or x.flatten(1) instead of numbers or loops over the images",
    )


def untraceable(built: BuiltModel, to: str, error: Exception) -> UserError:
    """What to say of a model that an exporter cannot follow: the operator or the line of code, and a way out."""
    told = str(error)
    if "Constraints violated" in told:
        return _of_one_size(built)
    lines, operator = _LINE.findall(told), _OPERATOR.search(told)
    weights = "--to safetensors holds the weights of any model"
    if built.name.startswith("object:"):
        weights = "its weights lie in the run, checkpoints/*/model.safetensors, under the object's own names"
    if operator is not None:
        name = (operator[1] or operator[2]).replace("::", ".").removesuffix(".default")
        return UserError(
            f"{built.name} cannot become {to}: it uses the operator {name}, which has no form there",
            "operators that the format has",
            f"write this layer with others; {weights}",
        )
    summary = told.partition("## Exception summary")[2].strip() or told
    where = "{}:{}, in {}: {}".format(*lines[-1]) if lines else summary.partition("\n")[0][:200]
    return UserError(
        f"{built.name} cannot become {to}: torch.export cannot trace it ({where})",
        "a forward pass that is the same for all images: no branch on values of tensors",
        f"write it with torch.where; {weights}",
    )
