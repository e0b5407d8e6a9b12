"""Pretrained weights from a hub: what to tell the user when they do not come."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from warmstart.errors import UserError, listing
from warmstart.models.image_text.prompts import split_head
from warmstart.models.sizes import Size, first_line

_PATIENCE = 3.0  # seconds
_WEIGHTS = (".safetensors", ".bin")


def fetch(make: Callable[[], nn.Module], name: str, size: Size) -> nn.Module:
    """Build `name` with pretrained weights; whatever fails on the way becomes a message with the ways out."""
    try:
        return make()
    except Exception as error:  # each hub client has its own exceptions, few of them an OSError
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, RuntimeError) and "size mismatch" in str(error):
            raise UserError(
                f"the pretrained weights of {name} do not fit images of {size[0]}x{size[1]} pixels",
                "the image size they were trained at",
                "leave --image-size out, or choose another --model",
            ) from error
        if name.startswith("hf:") and (folder := Path(split_head(name.removeprefix("hf:"))[0])).is_dir():
            raise _bad_folder(folder, reason) from error
        if name.startswith("torchvision:"):
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            ways = "copy that folder from a machine that has it (TORCH_HOME says where it lies)"
        else:
            cache = _cache_folder()
            ways = (
                "set HF_ENDPOINT to a mirror, copy the cache folder from a machine that has it "
                "(HF_HOME says where it lies)"
            )
        if name.startswith("hf:"):
            ways += (
                ", name a folder that holds it (--model hf:FOLDER, with config.json and model.safetensors)"
            )
        if _is_damaged(error):
            raise UserError(
                f"what came as the pretrained weights of {name}, into the cache {cache}, is damaged or "
                f"belongs to another model ({reason})",
                "the file that the hub publishes",
                "delete it from that cache and try again (behind a proxy or a login page, look at what it "
                "holds), or pass --weights FILE",
            ) from error
        raise UserError(
            f"the pretrained weights of {name} are not in the cache {cache} and could not be "
            f"downloaded ({reason})",
            "a connection to the model hub, or the weights in that cache",
            f"{ways}, pass --weights FILE, or --weights none for random initialisation",
        ) from error


def _bad_folder(folder: Path, reason: str) -> UserError:
    """For a folder on this machine that no weights could be read from; no hub was asked."""
    files = sorted(file for file in folder.iterdir() if file.suffix in _WEIGHTS)
    if not files:
        return UserError(
            f"the folder {folder} holds no weights ({reason})",
            "model.safetensors or pytorch_model.bin beside config.json",
            "copy the whole folder, or --weights none for random initialisation",
        )
    damaged = [file for file in files if file.suffix == ".safetensors" and not _opens(file)]
    return UserError(
        f"the folder {folder} cannot be read as a model: {listing(file.name for file in damaged or files)} "
        f"{'is damaged' if damaged else 'is damaged, or of another model than config.json'} ({reason})",
        "the files that save_pretrained wrote, whole",
        "copy the folder again from where it came from, or pass --weights FILE",
    )


def _opens(file: Path) -> bool:
    """Whether a safetensors file has the length that its header says."""
    try:
        with safe_open(file, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _is_damaged(error: Exception) -> bool:
    """Whether a file did arrive and cannot be read or loaded."""
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL  # torch.load, sent beyond the end of a truncated file
    words = ("loading state_dict", "PytorchStreamReader", "invalid hash")  # torch's RuntimeErrors
    return isinstance(error, (SafetensorError, pickle.UnpicklingError, EOFError)) or any(
        word in str(error) for word in words
    )


def _cache_folder() -> Path:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def hub_answers() -> bool:
    """Whether the host of Hugging Face's hub (or of HF_ENDPOINT) takes a connection; behind a proxy it is taken to.

    Its client would try for half a minute before it says that there is no network.
    """
    if getproxies():
        return True
    place = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((place.hostname or "", place.port or 443), _PATIENCE):
            return True
    except OSError:
        return False
