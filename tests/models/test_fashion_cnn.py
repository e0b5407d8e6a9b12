from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.models.builtin.fashion_cnn import FashionCNN


def test_size_and_shapes() -> None:
    model = FashionCNN()
    assert sum(p.numel() for p in model.parameters()) == 440_458
    assert model.dropout.p == 0.3
    assert FashionCNN(num_classes=3, dropout=0.0).eval()(torch.zeros(2, 1, 40, 8)).shape == (2, 3)


def _images(folder: Path) -> tuple[Tensor, Tensor]:
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(), np.uint8, offset=8)
    return (torch.tensor(pixels) / 255 - 0.1307) / 0.3081, torch.tensor(labels)


def _plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The document's forward, written from its description with functions only; logits."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])

    for number, padding in ((1, 2), (2, 1), (3, 1)):
        x = F.conv2d(x, state[f"conv{number}.weight"], state[f"conv{number}.bias"], padding=padding)
        x = F.max_pool2d(F.relu(norm(f"bn{number}", x)), 2)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    x = F.relu(norm("bn_fc", F.linear(x, state["fc1.weight"], state["fc1.bias"])))
    return F.linear(x, state["fc2.weight"], state["fc2.bias"])


@pytest.mark.shared
def test_the_documents_file_gives_the_documents_logits(fashion_file: Path, shared: Path) -> None:
    state = torch.load(fashion_file, weights_only=True)
    model = FashionCNN().eval()
    model.load_state_dict(state)
    images, labels = _images(shared / "data" / "fashion900")
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(logits, _plain(state, images))
    assert (logits.argmax(1) == labels).float().mean() == pytest.approx(0.95, abs=0.02)
