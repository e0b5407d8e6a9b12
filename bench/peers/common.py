"""What all sides outside warmstart share, so that they differ in their loop alone: model, images, score.

Every file next to this one is one side: a process of its own that prints one line of JSON. Work on all of them:
a fresh head on the start weights, random-resized crop (.6 to 1) and flip, AdamW 1e-3 (decay .01) with a cosine
to 0, the last short batch of training dropped (not by transformers), a validation after each epoch; then, outside
the fit, the score on val + test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import datasets
from torchvision import transforms as T

EVAL_BATCH = 64
DECAY = 0.01
SCALE = (0.6, 1.0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder with train, val and test, each of class folders")
    parser.add_argument("--weights", required=True, help="safetensors file without a head")
    parser.add_argument("--mode", choices=("full", "head", "last2"), default="full")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--counts", type=int, nargs=3, help="in_memory: training images, val images, classes")
    parser.add_argument("--checkpoint", help="score: model.safetensors of a run")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


def metadata(weights: str) -> dict[str, str]:
    with safe_open(weights, "pt") as file:
        return dict(file.metadata())


def normalisation(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """(mean, std) that the start weights were trained with."""
    stated = metadata(args.weights)
    return json.loads(stated["mean"]), json.loads(stated["std"])


def build_model(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The start weights under a fresh head; what `args.mode` freezes has no gradient."""
    model = timm.create_model(metadata(args.weights)["arch"], num_classes=num_classes)
    missing, unexpected = model.load_state_dict(load_file(args.weights), strict=False)
    head = model.default_cfg["classifier"]
    assert not unexpected and all(name.startswith(head) for name in missing), (missing, unexpected)
    if args.mode != "full":
        model.requires_grad_(False)
        for part in trained_parts(model, args.mode):
            part.requires_grad_(True)
    return model.to(args.device)


def trained_parts(model: nn.Module, mode: str) -> list[nn.Module]:
    """head: the classifier alone; last2: the last two blocks and all that follows them."""
    if mode == "head":
        return [model.get_classifier()]
    children = list(model.children())
    position = next(i for i, child in enumerate(children) if child is model.blocks)
    return [*model.blocks[-2:], *children[position + 1 :]]


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def eval_transform(args: argparse.Namespace) -> T.Compose:
    resize = [T.Resize(round(args.px / 0.875)), T.CenterCrop(args.px)]
    return T.Compose([*resize, T.ToTensor(), T.Normalize(*normalisation(args))])


def train_set(args: argparse.Namespace) -> datasets.ImageFolder:
    augment = [T.RandomResizedCrop(args.px, SCALE), T.RandomHorizontalFlip()]
    transform = T.Compose([*augment, T.ToTensor(), T.Normalize(*normalisation(args))])
    return datasets.ImageFolder(args.data / "train", transform)


def val_set(args: argparse.Namespace) -> datasets.ImageFolder:
    return datasets.ImageFolder(args.data / "val", eval_transform(args))


def loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    pinned = {"num_workers": args.workers, "pin_memory": args.device != "cpu"}
    train = DataLoader(train_set(args), args.batch, shuffle=True, drop_last=True, **pinned)
    return train, DataLoader(val_set(args), EVAL_BATCH, **pinned)


@torch.inference_mode()
def right_answers(model: nn.Module, batches: Iterable, device: str) -> list[int]:
    """1 or 0 per image, in the order of `batches`. Leaves the model in evaluation mode."""
    model.eval()
    right: list[int] = []
    for images, targets in batches:
        right += (model(images.to(device)).argmax(1).cpu() == targets.cpu()).int().tolist()
    return right


class Clock:
    """Seconds of a fit: from its start to each `epoch()` (after the validation) and to `stop()`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.epoch_ends: list[float] = []
        self.fit_s = 0.0

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return round(time.perf_counter() - self._start, 4)

    def epoch(self) -> None:
        self.epoch_ends.append(self._now())

    def stop(self) -> None:
        self.fit_s = self._now()


def report(args: argparse.Namespace, model: nn.Module, clock: Clock, images_per_epoch: int) -> None:
    """Print the line of JSON."""
    line = {"fit_s": clock.fit_s, "epoch_ends": clock.epoch_ends, "images_per_epoch": images_per_epoch}
    print(json.dumps({**line, "right": score(args, model)}), flush=True)


def score(args: argparse.Namespace, model: nn.Module) -> str:
    """'1' or '0' for each image of val, then test: the same transform and order for every side."""
    splits = [datasets.ImageFolder(args.data / split, eval_transform(args)) for split in ("val", "test")]
    batches = DataLoader(ConcatDataset(splits), EVAL_BATCH, num_workers=args.workers)
    return "".join(map(str, right_answers(model, batches, args.device)))
