"""Hints: the student's maps are drawn to the teacher's of the same resolution (Romero et al. 2015, FitNets).

Shapes: N images, a map (N, C, h, w); what a block of a transformer gives, (N, tokens, C), is a map of its patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from warmstart.adapt.apply import Group
from warmstart.adapt.plan import Plan
from warmstart.config.schema import OptimConfig
from warmstart.engine.lessons.teachers import Teachers
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel
from warmstart.records import Block

HINTS = "hints"  # the block's name in the optimizer, and what the tensors' names begin with
_MOST_PREFIX_TOKENS = 5  # class, distillation and register tokens


@dataclass(frozen=True)
class HintPair:
    """Two modules with maps of one resolution: `stride` pixels of the input by a place, `widths` (ours, theirs)."""

    teacher: int
    student_path: str
    teacher_path: str
    stride: int
    widths: tuple[int, int]


def match_hints(student: BuiltModel, teachers: Teachers, plan: Plan) -> tuple[HintPair, ...]:
    """For each resolution that both have, the last blocks that give it; before the student's first block that trains
    nothing could be learned from a hint.

    Raises:
        UserError: no resolution is in both.
    """
    blocks = list(student.blocks[:-1])
    while blocks and not plan.row(blocks[0].name).trainable:
        blocks.pop(0)
    height, width = student.preprocessing.image_size
    pixels = torch.rand(
        (2, student.preprocessing.num_channels, height, width), generator=torch.Generator().manual_seed(0)
    ).to(teachers.device)
    ours = _maps_by_stride(student.module, blocks, pixels)
    pairs = []
    for number, teacher in enumerate(teachers.each):
        theirs = _maps_by_stride(teacher.module, teacher.blocks[:-1], teacher.inputs(pixels))
        common = [stride for stride in ours if stride in theirs]
        # Maps of single pixels cost as much as all others, and say least.
        for stride in [stride for stride in common if stride > 1] or common:
            (one, own_width), (other, their_width) = ours[stride], theirs[stride]
            pairs.append(HintPair(number, one, other, stride, (own_width, their_width)))
        if not common:
            raise UserError(
                f"--distill.hints: no block of {student.name} gives maps of a resolution that {teacher.name} has "
                f"(pixels by place: {sorted(ours) or 'no maps'}, and {sorted(theirs) or 'no maps'})",
                "two models with a resolution in common",
                "leave --distill.hints out, or take another --model or --image-size",
            )
    return tuple(pairs)


def _maps_by_stride(
    module: nn.Module, blocks: Sequence[Block], images: torch.Tensor
) -> dict[int, tuple[str, int]]:
    """Stride -> (path, channels) of the last module that gives such a map, of those that the blocks consist of."""
    paths = [path for block in blocks for path in block.modules]
    modes = {each: each.training for each in module.modules()}
    module.eval()
    with torch.no_grad(), watched(module, paths) as found:
        module(images)
    for each, is_training in modes.items():
        each.training = is_training
    strides = {}
    for path, output in found.items():
        seen = as_map(output, images.shape[2:])
        if seen is not None and seen.shape[2:].numel() > 1:
            strides[round(math.sqrt(images.shape[2:].numel() / seen.shape[2:].numel()))] = path, seen.shape[1]
    return strides


@contextmanager
def watched(module: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """While it lasts, what the modules at `paths` give is put into the dictionary, in the order of their work."""
    found: dict[str, Any] = {}

    def keep(path: str, _: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        found.pop(path, None)  # the last time counts, with its place in the order
        found[path] = output

    hooks = [module.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def as_map(output: Any, image_size: Sequence[int]) -> torch.Tensor | None:
    """(N, C, h, w) of what a module gives for images of (H, W); None: it is no map of them."""
    if not isinstance(output, torch.Tensor):
        return None
    aspect = image_size[0] / image_size[1]
    if output.ndim == 4:
        if _is_grid(output.shape[2:], aspect):
            return output
        return output.permute(0, 3, 1, 2) if _is_grid(output.shape[1:3], aspect) else None
    if output.ndim != 3:
        return None
    for num_prefix in range(_MOST_PREFIX_TOKENS + 1):
        num = output.shape[1] - num_prefix
        height = round(math.sqrt(max(num, 0) * aspect))
        if height and num % height == 0 and _is_grid((height, num // height), aspect):
            return output[:, num_prefix:].transpose(1, 2).unflatten(2, (height, num // height))
    return None


def _is_grid(size: Sequence[int], aspect: float) -> bool:
    """Whether (h, w) has the images' aspect, but for a place that rounding may cost."""
    return abs(size[0] - size[1] * aspect) < 1


class Hints(nn.Module):
    """A 1x1 projection (at each place linear) from the student's width to the teacher's, for each pair."""

    def __init__(self, pairs: Sequence[HintPair], seed: int, device: torch.device) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would seed CUDA too
            layers = [nn.Conv2d(*pair.widths, kernel_size=1) for pair in pairs]
        self.projections = nn.ModuleList(layers).to(device)

    def groups(self, optim: OptimConfig, factor: float) -> tuple[Group, ...]:
        """Of the optimizer: all of them train, at the base rate of the stage."""
        named = [(f"{HINTS}.{name}", parameter) for name, parameter in self.named_parameters()]
        groups = []
        for decay, kind in ((optim.weight_decay, ".weight"), (0.0, ".bias")):
            chosen = [pair for pair in named if pair[0].endswith(kind)]
            names, parameters = zip(*chosen, strict=True)
            groups.append(Group(HINTS, optim.lr * factor, decay, names, parameters))
        return tuple(groups)

    def forward(
        self,
        ours: dict[str, Any],
        theirs: Sequence[dict[str, Any]],
        sizes: tuple[Sequence[int], Sequence[Sequence[int]]],
    ) -> torch.Tensor:
        """(N,): the mean over pairs of ||p / |p| - t / |t|||^2 of each image, p the projected map, t the teacher's.

        `ours` and `theirs` (of each teacher) hold what modules gave, `sizes` the input's of both.
        """
        total = torch.zeros(())
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            own = as_map(ours[pair.student_path], sizes[0])
            wanted = as_map(theirs[pair.teacher][pair.teacher_path], sizes[1][pair.teacher])
            assert own is not None and wanted is not None, "maps were found when the pairs were"
            own = projection(own).float()
            wanted = wanted.float()
            if own.shape[2:] != wanted.shape[2:]:  # a place more or less, by rounding
                wanted = F.interpolate(wanted, own.shape[2:], mode="bilinear", align_corners=False)
            p, t = (F.normalize(each.flatten(1), dim=1) for each in (own, wanted))
            total = total + (p - t).square().sum(dim=1)
        return total / len(self.pairs)
