"""What is written piece by piece is what safetensors writes at once, and never whole in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from warmstart.models.tensor_file import _WORDS, TensorFile
from warmstart.run import writer


def tensors() -> dict[str, torch.Tensor]:
    """Of every type, with names and shapes that a file may have."""
    made = {f"layer.{word}": torch.arange(6).reshape(2, 3).to(dtype) for dtype, word in _WORDS.items()}
    made |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.5), 'ünï "quoted"\n': torch.ones(3)}
    return {**made, "b.weight": torch.randn(4, 3), "a.weight": torch.randn(3)}


@pytest.mark.parametrize("metadata", [None, {"warmstart": '{"classes": "[\\"ä\\", \\"b\\"]"}'}])
def test_the_bytes_are_those_of_safetensors(metadata: dict[str, str] | None) -> None:
    given = tensors()
    made = TensorFile(given, metadata)
    content = b"".join(made)
    assert content == save(given, metadata) and made.num_bytes == len(content)


def test_tensors_in_another_memory_layout_are_written_as_they_are_read(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    given = {"image": image, "turned": torch.randn(3, 4).T, "part": torch.arange(10)[::2]}
    writer.write_whole(tmp_path / "x.safetensors", TensorFile(given, {"a": "b"}))
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"a": "b"}


def test_nothing_is_copied(tmp_path: Path) -> None:
    content = TensorFile({f"{number}": torch.randn(1_000_000) for number in range(8)})
    tracemalloc.start()
    writer.write_whole(tmp_path / "x.safetensors", content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert content.num_bytes > 32_000_000 and peak < 1_000_000
