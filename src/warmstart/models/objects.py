"""Python objects as models: `object:ClassName-1a2b3c4d` names a copy that was handed over in this process.

The digest is of its layers and shapes, so that two objects of one class are two models.

Nothing is ever imported because a file names it: in another process, the object has to be passed again.
Shapes: N images, C channels, K outputs.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.created import Created, Outline, Wanted, shapes_of
from warmstart.models.gaps import under
from warmstart.models.heads import fit_head
from warmstart.models.sizes import Size, check_image_size, first_line
from warmstart.records import Preprocessing

_SIZES = (32, 64, 28, 128, 224, 96, 256, 299, 384, 512)  # tried where nothing says the image size
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Kept:
    module: nn.Module  # a copy, on the CPU, in float32; never trained
    head: str
    num_channels: int


_KEPT: dict[str, _Kept] = {}


def keep(module: object, image_size: Size | None = None) -> str:
    """Keep a copy of `module` for this process and return its name; the object itself is never changed.

    Its classifier is found by a forward pass, at `image_size` or else at sizes that models use.
    UserError: not an nn.Module, no copy can be made, or it is unclear which layer makes the outputs.
    """
    if not isinstance(module, nn.Module):
        raise UserError(
            f"a {type(module).__name__} was passed as the model",
            "an nn.Module, or the name of a model, a file or a run",
        )
    inner = getattr(module, "_orig_mod", module)  # torch.compile
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    try:
        copied = copy.deepcopy(inner).cpu().float()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"the {type(inner).__name__} cannot be copied: {first_line(error)}",
            "a module that copy.deepcopy copies",
            "pass a freshly built module",
        ) from error
    copied.zero_grad(set_to_none=True)
    num_channels, head = _find_head(copied, image_size)
    name = f"{type(inner).__name__}-{_digest(copied, head)}"
    _KEPT[name] = _Kept(copied, head, num_channels)
    return f"object:{name}"


def _digest(module: nn.Module, head: str) -> str:
    """Of what repr shows of every layer, and of all shapes; but for the classifier, which follows the data."""
    layers = [(path, type(m).__name__, m.extra_repr()) for path, m in module.named_modules() if path != head]
    shapes = {key: shape for key, shape in shapes_of(module).items() if not under(key, head)}
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr((layers, sorted(shapes.items()))))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_kept(bare: str) -> None:
    """UserError unless an object of this class, layers and shapes was passed in this process."""
    if bare not in _KEPT:
        kind, kinds = _kind(bare), [_kind(other) for other in _KEPT]
        others = f" (a {kinds[-1]} was)" if kinds else ""
        if kind in kinds:
            others = f" (another {kind} was, whose layers or shapes differ)"
        raise UserError(
            f"the model was a Python object, a {kind}, and none was passed in this process{others}",
            "the object, or one of the same structure",
            f"in Python: warmstart.evaluate(RUN, data, module={kind}(...)); predict, export, compress, explain, check "
            "and resume take module= too",
        )


def _kind(bare: str) -> str:
    """The class in a kept name."""
    return bare.rpartition("-")[0] or bare


def copy_of(bare: str) -> nn.Module:
    """The kept object with its own classes, to be changed."""
    return copy.deepcopy(_KEPT[bare].module)


def create_object(bare: str, wanted: Wanted) -> Created:
    """A copy of the kept object, as `zoo.create` promises; its own weights are where it starts from."""
    kept, name = _KEPT[bare], f"object:{bare}"
    if wanted.dropout is not None:
        raise UserError(
            f"{name} is built already, so --dropout {wanted.dropout} would do nothing",
            "no --dropout for a Python object",
            "set it in the object itself",
        )
    preprocessing, notes = _preprocessing(kept, name, wanted.image_size)
    check_image_size(lambda _: copy.deepcopy(kept.module), name, preprocessing.image_size, kept.num_channels)
    module = copy_of(bare)
    if wanted.num_classes is not None:
        fit_head(module, kept.head, (), [str(number) for number in range(wanted.num_classes)], seed=0)
    return Created(
        module=module,
        head=kept.head,
        preprocessing=preprocessing,
        licence=None,
        channels_last=False,  # `view` in a foreign forward breaks on that layout
        classes=None,
        origin=name,
        notes=notes,
    )


def outline_object(bare: str) -> Outline:
    kept = _KEPT[bare]
    first = next((path for path, m in kept.module.named_modules() if isinstance(m, nn.Conv2d)), None)
    return Outline(kept.head, first, False, shapes_of(kept.module), None)


def _preprocessing(kept: _Kept, name: str, image_size: Size | None) -> tuple[Preprocessing, tuple[str, ...]]:
    """What the object says as timm's models do, else ImageNet's mean and deviation, and that it was assumed."""
    stated = _config(kept.module)
    size = image_size or _stated_size(stated)
    if size is None:
        raise UserError(
            f"{name} does not say which image size it was made for",
            "--image-size HxW (image_size= in Python)",
            "give the size that its images had in training",
        )
    mean, std = (tuple(stated.get(key) or ()) for key in ("mean", "std"))
    notes: tuple[str, ...] = ()
    if not (len(mean) == len(std) == kept.num_channels):
        mean, std = _IMAGENET
        if kept.num_channels != len(mean):
            mean, std = (((sum(v) / len(v)),) * kept.num_channels for v in _IMAGENET)
        notes = (f"{name} states no mean and std: ImageNet's, unless --mean and --std say others",)
    return Preprocessing(size, mean, std, float(stated.get("crop_pct") or 1.0)), notes


def _config(module: nn.Module) -> Mapping[str, Any]:
    found = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    return found if isinstance(found, Mapping) else {}


def _stated_size(config: Mapping[str, Any]) -> Size | None:
    size = config.get("input_size")
    return (int(size[-2]), int(size[-1])) if isinstance(size, (tuple, list)) and len(size) == 3 else None


def _find_head(module: nn.Module, image_size: Size | None) -> tuple[int, str]:
    """(C, path of the layer that makes the K outputs), from one forward pass on two random images."""
    own = image_size or _stated_size(_config(module))
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    error: Exception | None = None
    generator = torch.Generator().manual_seed(0)
    for size in [own] if own else [(side, side) for side in _SIZES]:
        for channels in (first.in_channels,) if first else (1, 3):
            result = _trace(module, torch.randn(2, channels, *size, generator=generator))
            if not isinstance(result, Exception):
                return channels, _head_of(module, *result)
            error = error or result
    tried = f"{own[0]}x{own[1]}" if own else f"{_SIZES[0]} and others"
    raise UserError(
        f"the {type(module).__name__} cannot run on images of {tried} pixels: {first_line(error)}",  # type: ignore[arg-type]
        "a module that takes one batch of images, N x C x H x W",
        "pass image_size=, or wrap it in a module whose forward takes images only",
    ) from error


def _trace(module: nn.Module, images: Tensor) -> tuple[Any, list[tuple[str, Any]]] | Exception:
    """What the module gives, and (path, output) of every layer that could be its classifier, as called."""
    calls: list[tuple[str, Any]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output, path=path: calls.append((path, output)))
        for path, layer in module.named_modules()
        if path and _can_classify(layer)
    ]
    modes = {m: m.training for m in module.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return module.eval()(images), calls
    except Exception as error:  # a foreign forward raises what it likes; the caller words it
        return error
    finally:
        for hook in hooks:
            hook.remove()
        for part, training in modes.items():
            part.training = training


def _can_classify(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _head_of(module: nn.Module, outputs: Any, calls: list[tuple[str, Any]]) -> str:
    kind = type(module).__name__
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = "x".join(map(str, outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"the {kind} gives {shape}, not one row of class scores per image",
            "logits of shape N x K",
            "wrap it in an nn.Module whose forward returns its logits",
        )
    path, made = calls[-1] if calls else ("", None)
    if path and f"{path}.weight" not in shapes_of(module):
        raise UserError(
            f"the classifier {path!r} of the {kind} is parametrised (as weight_norm does it): its rows are no weights",
            "a plain nn.Linear or 1x1 convolution as the last layer",
            "torch.nn.utils.parametrize.remove_parametrizations(LAYER, 'weight') before it is passed",
        )
    if not isinstance(made, Tensor) or made.shape[1] != outputs.shape[1] or len(made) != len(outputs):
        raise UserError(
            f"it is unclear which layer of the {kind} makes its {outputs.shape[1]} outputs"
            + (f": the last linear layer called is {path!r}" if calls else ": it has no linear layer"),
            "a model that ends in an nn.Linear or a 1x1 convolution",
            "wrap it in an nn.Module that does",
        )
    sums, plain = outputs.sum(dim=1), made.flatten(1)
    are_shares = bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
    if are_shares and (plain.shape != outputs.shape or not torch.allclose(plain, outputs)):
        raise UserError(
            f"the {kind} ends in a softmax: it gives probabilities",
            "logits (the loss has its own softmax)",
            "leave the softmax out of its forward",
        )
    return path
