"""Does a model work at an image size? Asked before any download, on the meta device, which costs no arithmetic."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from warmstart.errors import UserError, listing

Size = tuple[int, int]  # (height, width) in pixels
_CANDIDATES = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 336, 384, 448, 512, 518)


def first_line(error: Exception) -> str:
    """The first line of a library's message, or the exception's name where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_image_size(make: Callable[[Size], nn.Module], name: str, size: Size, in_channels: int) -> None:
    """Raise a UserError that names the size and the nearest workable squares if a forward at `size` fails.

    `make` builds the model for an image size, on the current default device.
    """
    if _failure(make, size, in_channels, "meta") is None:
        return
    # A few models compute with values, which the meta device has not: only a real forward condemns.
    cause = _failure(make, size, in_channels, "cpu")
    if cause is None:
        return
    height, width = size
    nearest = [f"{s}x{s}" for s in _workable(make, max(size), in_channels)]
    raise UserError(
        f"{name} cannot run on images of {height}x{width} pixels: {first_line(cause)}",
        "an image size the architecture can divide"
        + (f"; of the squares that were tried the nearest that work: {listing(nearest)}" if nearest else ""),
        f"--image-size {nearest[0]}, or another --model" if nearest else "choose another --image-size",
    ) from cause


def _workable(make: Callable[[Size], nn.Module], side: int, in_channels: int) -> list[int]:
    """Sides of the nearest smaller and larger squares that work, the nearer one first."""
    smaller = [s for s in reversed(_CANDIDATES) if s <= side]
    larger = [s for s in _CANDIDATES if s > side]
    found = [
        next((s for s in sides if _failure(make, (s, s), in_channels, "meta") is None), None)
        for sides in (smaller, larger)
    ]
    return sorted((s for s in found if s is not None), key=lambda s: abs(s - side))


def resize(module: nn.Module, name: str, old: Size, new: Size) -> None:
    """Move a loaded model with a fixed input from one image size to another, in place: its position
    embeddings are interpolated, as timm and torchvision do it themselves."""
    move = getattr(module, "set_input_size", None)
    if move is None and type(module).__module__ == "torchvision.models.vision_transformer":
        move = partial(_resize_torchvision, module)
    if move is None:
        raise _immovable(name, old, new, "its weights hold one size only")
    try:
        move(img_size=new)
    except Exception as error:  # what timm raises differs from model to model
        raise _immovable(name, old, new, first_line(error)) from error


def _resize_torchvision(module: Any, img_size: Size) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    key, (height, width) = "encoder.pos_embedding", img_size
    if height != width or height % module.patch_size:
        raise ValueError(f"it takes square images of a multiple of {module.patch_size} pixels")
    state = interpolate_embeddings(
        height, module.patch_size, OrderedDict({key: module.encoder.pos_embedding.data})
    )
    module.encoder.pos_embedding = nn.Parameter(state[key])
    module.image_size, module.seq_length = height, state[key].shape[1]


def _immovable(name: str, old: Size, new: Size, reason: str) -> UserError:
    return UserError(
        f"{name} was saved for images of {old[0]}x{old[1]} pixels and cannot be moved to {new[0]}x{new[1]}: {reason}",
        f"--image-size {old[0]}x{old[1]}",
        "leave --image-size out, or choose another --model",
    )


def _failure(
    make: Callable[[Size], nn.Module], size: Size, in_channels: int, device: str
) -> Exception | None:
    """What the library raised when the model was built and run on two blank images, or None."""
    # Libraries raise whatever they please here (asserts, shape errors, divisions by zero) and warn
    # about tensors without elements; the caller turns the exception into the user's message.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            with torch.device(device):
                make(size).eval()(torch.zeros(2, in_channels, *size))
        except Exception as error:
            return error
    return None
