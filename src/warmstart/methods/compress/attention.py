"""Heads of attentions as units that can be removed, one by one, with their queries, keys, values and outputs.

The residual stream that attentions read and write keeps its width. What is found here is found by structure: a layer of
queries, keys and values, and one that mixes what the heads give.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from warmstart.methods.compress.channels import Group, Member, Side

_BIAS_TABLE = "relative_position_bias_table"  # Swin's: (positions, heads)
_SEPARATE = (("q_proj", "k_proj", "v_proj"), ("out_proj", "proj"))  # transformers' CLIP and SigLIP
_FUSED = (("qkv",), ("proj",))  # timm's ViT and Swin
_PER_HEAD = frozenset({"q_norm", "k_norm", "gate"})


def find_attentions(module: nn.Module) -> frozenset[str]:
    """Paths of the innermost modules with heads: no channel of theirs is taken out but with its head."""
    found = [
        path
        for path, child in module.named_modules()
        if any(isinstance(getattr(child, name, None), int) for name in ("num_heads", "num_attention_heads"))
    ]
    return frozenset(path for path in found if not any(other.startswith(f"{path}.") for other in found))


def head_groups(module: nn.Module) -> Iterator[Group]:
    """One group per attention of a known structure with more than one head; others keep their heads."""
    for path, child in module.named_modules():
        num_heads = getattr(child, "num_heads", None)
        if not isinstance(num_heads, int) or num_heads < 2 or isinstance(child, nn.MultiheadAttention):
            continue
        for inner, outer in (_FUSED, _SEPARATE):
            group = _group(path, child, inner, outer, num_heads)
            if group is not None:
                yield group


def _group(
    path: str, attention: nn.Module, inner: tuple[str, ...], outer: tuple[str, ...], num_heads: int
) -> Group | None:
    """None: it has another structure, parameters of its own, or something between heads and output."""
    children = dict(attention.named_children())
    out_name = next((name for name in outer if name in children), None)
    if out_name is None or any(name not in children for name in inner):
        return None
    known = {*inner, out_name, *_PER_HEAD}
    strange = [n for n, c in children.items() if n not in known and next(c.parameters(), None) is not None]
    own = {name for name, _ in attention.named_parameters(recurse=False)} - {_BIAS_TABLE}
    out = children[out_name]
    gate = children.get("gate")
    makers = [layer for name in inner if isinstance(layer := children[name], nn.Linear)]
    if strange or own or not isinstance(out, nn.Linear) or len(makers) < len(inner):
        return None
    width = out.in_features
    repeats = 3 if inner == ("qkv",) else 1
    if any(layer.out_features != repeats * width for layer in makers) or width % num_heads:
        return None  # keys and values are shared by heads, or have another width
    members = [_rows(f"{path}.{name}", Side.OUT, width, num_heads, repeats) for name in inner]
    if isinstance(gate, nn.Linear):
        members.append(_rows(f"{path}.gate", Side.OUT, width, num_heads, 1))
    members.append(_rows(f"{path}.{out_name}", Side.IN, width, num_heads, 1))
    one_each = tuple((head,) for head in range(num_heads))
    if _BIAS_TABLE in dict(attention.named_parameters(recurse=False)):
        members.append(Member(f"{path}.{_BIAS_TABLE}", Side.PARAMETER, one_each))
    return Group((*members, Member(path, Side.HEADS, one_each)))


def _rows(path: str, side: Side, width: int, num_heads: int, repeats: int) -> Member:
    size = width // num_heads
    units = tuple(
        tuple(part * width + head * size + index for part in range(repeats) for index in range(size))
        for head in range(num_heads)
    )
    return Member(path, side, units)
