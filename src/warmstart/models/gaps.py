"""A file's tensors against a model's, by name and shape: what is missing, extra, different or harmless."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from warmstart.models.created import Outline, Shape

# Filled by the model itself, or counters that only matter without a momentum (files before PyTorch 0.4.1).
_COMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|position_ids|"
    r"total_ops|total_params)$"
)
# What training leaves beside a backbone: other heads, and what self-supervised methods predict with.
_OTHER_HEADS = re.compile(
    r"(^|\.)(aux\w*|Aux\w*|head\w*|heads|fc|fc_aux|classifier\w*|linear|last_linear|logits|projector|projection_head|"
    r"predictor|prototypes|mlp_head|pre_logits|decoder_\w+|mask_token|mask_embed|bottleneck|dino_head|ibot_head)(\.|$)"
)
_AVERAGED = re.compile(r"ema|averag|momentum|encoder_k|shadow|swa", re.IGNORECASE)
_MOST_PREFIXES = 40  # tried


@dataclass(frozen=True)
class Gaps:
    """Names by what is wrong with them; `share` of the backbone's parameters, by elements, that do fit."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...]
    share: float

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.differing)


def is_computed(key: str) -> bool:
    return _COMPUTED.search(key) is not None


def is_other_head(key: str, trunk: Iterable[str]) -> bool:
    """By its name; `trunk` are the branches below which everything is the backbone's."""
    return _OTHER_HEADS.search(key) is not None and not in_trunk(key, trunk)


def in_trunk(key: str, trunk: Iterable[str]) -> bool:
    return any(key == path or under(key, path) for path in trunk)


def branches(backbone: Iterable[str], head: str) -> frozenset[str]:
    """What the backbone's names start with, told where the classifier hangs: of `head.norm.weight`, with a
    classifier `head.fc`, it is `head.norm`."""
    parent = head[: head.rfind(".") + 1]
    starts = [(name, len(parent) if name.startswith(parent) else 0) for name in backbone]
    return frozenset(name[:start] + name[start:].partition(".")[0] for name, start in starts)


def is_averaged(prefix: str) -> bool:
    return _AVERAGED.search(prefix) is not None


def under(key: str, path: str) -> bool:
    return key.startswith(f"{path}.")


def compare(found: Mapping[str, Shape], wanted: Mapping[str, Shape], head: str) -> tuple[Gaps, list[str]]:
    """The gaps that matter, and notes of those that do not: counters, a whole head, heads of other tasks."""
    has_head = any(key in found for key in wanted if under(key, head))
    backbone = [key for key in wanted if not under(key, head) and not is_computed(key)]
    fit = sum(math.prod(wanted[key]) for key in backbone if found.get(key) == wanted[key])
    share = fit / max(1, sum(math.prod(wanted[key]) for key in backbone))
    missing = [key for key in wanted if key not in found and (has_head or not under(key, head))]
    unexpected = [key for key in found if key not in wanted]
    differing = [key for key in found if key in wanted and found[key] != wanted[key]]
    notes = []
    if counters := [key for key in missing if is_computed(key)]:
        notes.append(f"the file lacks {len(counters)} counters and tables that the model fills itself")
        missing = [key for key in missing if not is_computed(key)]
    unexpected = [key for key in unexpected if not is_computed(key)]
    trunk = branches(backbone, head)
    if share == 1 and (others := [key for key in unexpected if is_other_head(key, trunk)]):
        roots = sorted({key.partition(".")[0] for key in others})
        notes.append(f"left out {len(others)} tensors of other heads: {', '.join(roots[:5])}")
        unexpected = [key for key in unexpected if key not in others]
    return Gaps(tuple(missing), tuple(unexpected), tuple(differing), share), notes


def backbone_of(outline: Outline) -> dict[str, Shape]:
    return {k: s for k, s in outline.shapes.items() if not under(k, outline.head) and not is_computed(k)}


def same(found: Shape | None, wanted: Shape, key: str, outline: Outline) -> bool:
    """Equal shapes; a stem may take other channels and position embeddings have another grid: both are adapted."""
    if found is None or len(found) != len(wanted):
        return False
    if key == f"{outline.first_conv}.weight":
        return found[0] == wanted[0] and found[2:] == wanted[2:]
    if is_position(key):
        return found[-1] == wanted[-1]
    return found == wanted


def is_position(key: str) -> bool:
    return key.rpartition(".")[2] in ("pos_embed", "pos_embedding")


def full_prefixes(shapes: Mapping[str, Shape], outline: Outline) -> list[str]:
    """Prefixes (also the empty one) under which the whole backbone stands, by name and shape."""
    wanted = backbone_of(outline)
    return [
        prefix
        for prefix in prefixes(shapes, wanted)
        if all(same(shapes.get(prefix + key), shape, key, outline) for key, shape in wanted.items())
    ]


def prefixes(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Prefixes under which the longest name of the backbone stands."""
    anchor = max(wanted, key=lambda key: (key.count("."), len(key)))
    found = [key[: -len(anchor)] for key in names if key == anchor or key.endswith(f".{anchor}")]
    return found[:_MOST_PREFIXES]
