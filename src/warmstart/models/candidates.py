"""Which known architecture do these tensors belong to? Asked only when a file does not fit; bounded in time.

Models are built on the meta device, which costs no memory and about 75 ms each.
"""

from __future__ import annotations

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from warmstart.errors import UserError
from warmstart.models import gaps
from warmstart.models.builtin import NAMES
from warmstart.models.created import Outline, Shape
from warmstart.models.timm_zoo import import_timm
from warmstart.models.torchvision_zoo import torchvision_names
from warmstart.models.zoo import outline

_MAX_SECONDS = 8.0  # of processor time: a busy machine gives the same answer
_NUM_SIBLINGS = 40
_POPULAR = """
    resnet18 resnet50 vit_base_patch16_224 mobilenetv3_small_100 efficientnet_b0 convnext_tiny resnet34
    vit_small_patch16_224 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 mobilenetv2_100 densenet121 vgg16_bn vgg16
    resnet50d resnext50_32x4d seresnet50 wide_resnet50_2 regnety_016 convnextv2_tiny deit3_small_patch16_224
    vit_large_patch16_224 vit_base_patch32_224 beit_base_patch16_224 swinv2_tiny_window8_256 tf_efficientnetv2_s
    mobilevit_s mixer_b16_224 inception_v3 xception41 ghostnet_100 repvgg_a0 edgenext_small poolformer_s12 pvt_v2_b0
    eva02_tiny_patch14_224 mobileone_s0 fastvit_t8 mobilenetv4_conv_small vit_base_patch14_dinov2
"""
_POPULAR_TORCHVISION = """
    vit_b_16 swin_t convnext_tiny efficientnet_b0 mobilenet_v2 mobilenet_v3_small vgg16 densenet121 alexnet
    shufflenet_v2_x1_0 squeezenet1_1 mnasnet1_0 mobilenet_v3_large googlenet inception_v3 vit_b_32 vit_l_16
"""


@dataclass(frozen=True)
class Likeness:
    """Models that the tensors fit exactly; else the most alike, by the share of elements with equal name and
    shape; else one whose tensors have the same shapes under other names."""

    exact: tuple[str, ...] = ()
    nearest: str | None = None
    share: float = 0.0
    renamed: str | None = None


def search(shapes: Mapping[str, Shape], asked: str | None) -> Likeness:
    """The family of `asked` first, its nearest names before others, then popular models and the family of
    the most alike of them."""
    best, end = Likeness(), time.process_time() + _MAX_SECONDS
    exact: list[str] = []
    seen = {(asked or "").partition(".")[0]}
    for name in _candidates(asked):
        best = _look(name, shapes, best, seen, exact)
        if exact or time.process_time() > end:
            break
    if not exact and best.nearest is not None:
        for name in _relatives(best.nearest):
            best = _look(name, shapes, best, seen, exact)
            if exact or time.process_time() > end:
                break
    if exact and (twin := _twin(exact[0])) is not None:
        _look(twin, shapes, best, seen, exact)
    return Likeness(tuple(exact), best.nearest, best.share, best.renamed)


def _look(
    name: str, shapes: Mapping[str, Shape], best: Likeness, seen: set[str], exact: list[str]
) -> Likeness:
    if name in seen:
        return best
    seen.add(name)
    try:
        known = outline(name)
    except UserError:  # a model without one classifier is none that could be named
        return best
    if _fits(shapes, known):
        exact.append(name)
        return best
    share = _share(shapes, known)
    renamed = best.renamed or (name if _same_shapes(shapes, known) else None)
    if share > best.share:
        return Likeness((), name, share, renamed)
    return Likeness((), best.nearest, best.share, renamed)


def _fits(shapes: Mapping[str, Shape], known: Outline) -> bool:
    """Whether the whole backbone is there, and nothing beside it under the same prefix but heads and counters.

    Without the second question, every ResNet-34 would be a ResNet-18.
    """
    full = gaps.full_prefixes(shapes, known)
    trunk = gaps.branches(gaps.backbone_of(known), known.head)
    for prefix in full:
        twins = tuple(other for other in full if other != prefix and other.startswith(prefix))
        inside = [k for k in shapes if k.startswith(prefix) and not (twins and k.startswith(twins))]
        rest = {key.removeprefix(prefix) for key in inside} - set(known.shapes)
        if not any(not gaps.is_computed(key) and not gaps.is_other_head(key, trunk) for key in rest):
            return True
    return False


def block_counts(names: object) -> dict[str, int]:
    """Path of a numbered list -> how many items it has."""
    items: dict[str, set[int]] = {}
    for name in names:  # type: ignore[attr-defined]
        for match in re.finditer(r"(?<![^.])(\d+)(?=\.)", name):
            items.setdefault(name[: match.start()].rstrip("."), set()).add(int(match[1]))
    return {path: len(numbers) for path, numbers in items.items()}


def _share(shapes: Mapping[str, Shape], known: Outline) -> float:
    wanted = gaps.backbone_of(known)
    total = max(_size(shapes.values()), _size(wanted.values()), 1)
    fits = [0]
    for prefix in {"", *gaps.prefixes(shapes, wanted)[:3]}:
        fits.append(
            sum(math.prod(s) for k, s in wanted.items() if gaps.same(shapes.get(prefix + k), s, k, known))
        )
    return max(fits) / total


def _size(shapes: object) -> int:
    return sum(math.prod(shape) for shape in shapes)  # type: ignore[attr-defined]


def _same_shapes(shapes: Mapping[str, Shape], known: Outline) -> bool:
    """All matrices of the backbone, however they are called; the file may have a classifier beside them."""
    wanted = Counter(shape for shape in gaps.backbone_of(known).values() if len(shape) > 1)
    found = Counter(shape for shape in shapes.values() if len(shape) > 1)
    return bool(wanted) and not wanted - found and (found - wanted).total() <= 2


def _candidates(asked: str | None) -> Iterator[str]:
    if asked is not None and not asked.startswith("object:"):
        yield from _relatives(asked)
    yield from (f"builtin:{name}" for name in NAMES)
    for bare, other in zip_longest(_POPULAR.split(), _POPULAR_TORCHVISION.split()):
        yield f"timm:{bare}"
        if other is not None:
            yield f"torchvision:{other}"


def _relatives(name: str) -> list[str]:
    """The namesake in the other zoo, then the same family, nearest names first."""
    zoo, bare = name.split(":")
    bare = bare.partition(".")[0]
    if zoo == "torchvision":
        family = [n for n in torchvision_names() if n.split("_")[0].rstrip("0123456789") in bare]
        near = [f"torchvision:{n}" for n in _nearest_first(bare, family)]
    elif zoo == "timm" and import_timm().is_model(bare):
        from timm.models import model_entrypoint

        module = model_entrypoint(bare).__module__.rpartition(".")[2]
        near = [f"timm:{n}" for n in _nearest_first(bare, import_timm().list_models(module=module))]
    else:
        near = []
    twin = _twin(name)
    return ([twin] if twin else []) + near[:_NUM_SIBLINGS]


def _nearest_first(bare: str, names: list[str]) -> list[str]:
    """By similarity of the names with their numbers taken out first: depths and widths of one design."""
    design = re.sub(r"\d+", "#", bare)

    def distance(name: str) -> tuple[bool, int, float, str]:
        ratio = difflib.SequenceMatcher(None, bare, name).ratio()
        return re.sub(r"\d+", "#", name) != design, abs(len(name) - len(bare)) > 4, -ratio, name

    return sorted(names, key=distance)


def _twin(name: str) -> str | None:
    zoo, bare = name.split(":")
    bare = bare.partition(".")[0]
    if zoo == "timm":
        return f"torchvision:{bare}" if bare in torchvision_names() else None
    return f"timm:{bare}" if zoo == "torchvision" and import_timm().is_model(bare) else None
