"""The bytes of a safetensors file, one tensor after the other: it is never whole in memory a second time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# The format's words, in the order in which safetensors sorts them; tensors of the later ones come first in a file.
_WORDS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_ORDER = list(_WORDS)
_ALIGNED = 8  # bytes that the length of the header is a multiple of


class TensorFile:
    """What `safetensors.torch.save` gives for these tensors, piece by piece; they are read while it is written.

    A tensor may lie on any device and in any memory layout: only its own bytes are copied, and only while they are
    written. https://github.com/huggingface/safetensors#format
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        by_type = {name: -_ORDER.index(tensor.dtype) for name, tensor in tensors.items()}
        self._tensors = {
            name: tensors[name].detach() for name in sorted(tensors, key=lambda n: (by_type[n], n))
        }
        self._header = _header(self._tensors, metadata)
        self.num_bytes = len(self._header) + sum(tensor.nbytes for tensor in self._tensors.values())

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._header
        for tensor in self._tensors.values():
            if tensor.numel():
                plain = tensor.cpu().contiguous().reshape(-1)
                yield plain.view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Its length, and where each tensor lies in what follows."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
