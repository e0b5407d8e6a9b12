"""Which device and which arithmetic are in force."""

from __future__ import annotations

import sys

import torch

from warmstart.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device", "auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices", "auto or cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no MPS", "auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: not supported", "auto, cpu, cuda or mps")
    return device


def resolve_precision(name: str, device: torch.device) -> tuple[torch.dtype | None, str | None]:
    """The autocast type (None: float32) and a warning where `auto` had to fall back.

    On most CPUs half precision is emulated and slower than float32, so it is refused when asked for by name.

    Raises:
        UserError: the precision was named and the device does not have it.
    """
    if name == "float32":
        return None, None
    if device.type == "cuda":
        if name == "fp16":
            return torch.float16, None
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, None
        if name == "auto":
            return torch.float16, None
        raise UserError("--precision bf16: this GPU has no bf16", "--precision fp16 or float32")
    if name == "auto":
        return None, f"half precision is not used on {device.type}: computing in float32"
    raise UserError(
        f"--precision {name} needs a CUDA device; this run is on {device.type}", "--precision float32"
    )


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory: of the device's allocator, or of this process on a CPU; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # exists on Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
