"""torch's cache as torchvision leaves it, under the names of its own files; the numbers are random."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import models

MOBILENET = models.MobileNet_V2_Weights.IMAGENET1K_V1
ALEXNET = models.AlexNet_Weights.IMAGENET1K_V1


def write_cache(home: Path) -> Path:
    """The weights of document 003's two examples below `home`, which TORCH_HOME is to name; the folder of the files."""
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for weights, make in ((MOBILENET, models.mobilenet_v2), (ALEXNET, models.alexnet)):
        torch.manual_seed(0)
        torch.save(make(weights=None).state_dict(), folder / Path(weights.url).name)
    return folder
