"""Devices and arithmetic: what is not there is refused by name, never replaced in silence."""

from __future__ import annotations

import pytest
import torch

from warmstart.errors import UserError
from warmstart.inference.device import peak_bytes, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_names_that_are_no_device_are_refused() -> None:
    assert resolve_device("cpu") == CPU
    with pytest.raises(
        UserError, match="--device 'gpu' is not a device\nExpected: auto, cpu, cuda, cuda:1 or mps"
    ):
        resolve_device("gpu")
    with pytest.raises(UserError, match="--device meta: not supported"):
        resolve_device("meta")


def test_a_device_that_is_not_here_is_refused() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(UserError, match=f"--device cuda:{number}: this machine has {number} CUDA devices"):
        resolve_device(f"cuda:{number}")


def test_auto_names_a_device_that_is_here() -> None:
    assert resolve_device("auto").type == (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_by_name_is_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(UserError, match=f"--precision {name} needs a CUDA device; this run is on cpu"):
        resolve_precision(name, CPU)


def test_auto_falls_back_and_says_so() -> None:
    assert resolve_precision("auto", CPU) == (
        None,
        "half precision is not used on cpu: computing in float32",
    )
    assert resolve_precision("float32", CPU) == (None, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_has_half_precision() -> None:
    cuda = torch.device("cuda")
    assert resolve_precision("fp16", cuda) == (torch.float16, None)
    assert resolve_precision("auto", cuda)[0] in (torch.bfloat16, torch.float16)


def test_peak_memory_is_in_bytes() -> None:
    peak = peak_bytes(CPU)
    assert peak is None or 2**26 < peak < 2**40
