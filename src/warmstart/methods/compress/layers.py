"""Which layers a compression may touch: what --layers and --keep name, and never the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from warmstart.errors import UserError, closest, listing
from warmstart.methods.compress.subject import Subject


def chosen_layers(subject: Subject, refusal: Callable[[nn.Module], str | None]) -> tuple[str, ...]:
    """Paths of the layers with a weight that --layers names (default: all) and --keep does not, in the model's order.

    A pattern is a block, a layer, what a layer is in, or a glob of these. `refusal` says why a layer cannot be
    compressed. Layers of the head, and such as share their weight, are left out.

    Raises:
        UserError: --layers names the head, an output layer, or nothing that can be compressed; nothing is left.
    """
    built, settings = subject.built, subject.settings
    owner = {name: block.name for block in built.blocks for name in block.parameters}
    head, usable, reasons = built.blocks[-1].name, dict[str, str](), dict[str, str]()
    for path, layer in built.module.named_modules():
        block = owner.get(f"{path}.weight")
        if block is None:
            continue
        if block == head:
            reasons[path] = "is of the head, whose outputs are the answers"
        elif (why := refusal(layer)) is not None:
            reasons[path] = why
        else:
            usable[path] = block
    kept = _named("keep", settings.keep, {**usable, **{path: owner[f"{path}.weight"] for path in reasons}})
    if settings.layers:
        everything = {**usable, **{path: owner[f"{path}.weight"] for path in reasons}}
        for pattern in settings.layers:
            named = _named("layers", (pattern,), everything)
            refused = [path for path in reasons if path in named]
            in_head = [path for path in refused if owner[f"{path}.weight"] == head]
            if in_head or len(refused) == len(named):
                path = (in_head or refused)[0]
                raise UserError(
                    f"--layers {pattern}: {path} {reasons[path]}",
                    f"layers such as {next(iter(usable), 'those of another model')}",
                    f"leave {pattern} out",
                )
    wanted = _named("layers", settings.layers, usable) if settings.layers else set(usable)
    found = tuple(path for path in usable if path in wanted and path not in kept)
    if not found:
        raise UserError(
            f"no layer of {built.name} is left to {settings.method}",
            "linear layers or convolutions that --layers names and --keep does not",
            listing((f"{path} {why}" for path, why in reasons.items()), 3),
        )
    return found


def _named(setting: str, patterns: Sequence[str], layers: dict[str, str]) -> set[str]:
    """Of `layers` (path -> block), those that a pattern matches. UserError: one matches none."""
    found: set[str] = set()
    for pattern in patterns:
        matched = {path for path, block in layers.items() if _matches(pattern, path, block)}
        if not matched:
            names = [*dict.fromkeys(layers.values()), *layers]
            raise UserError(
                f"--{setting} {pattern!r} names no block and no layer of this model",
                f"blocks ({listing(dict.fromkeys(layers.values()), 6)}), layers, or globs of them",
                closest(pattern, names),
            )
        found |= matched
    return found


def _matches(pattern: str, path: str, block: str) -> bool:
    parts = path.split(".")
    inside = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(name, pattern) for name in (block, *inside))
