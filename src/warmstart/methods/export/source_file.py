"""A model back as it came: in the container, with the names and the types of the file that its first run started from.

Which tensor of the file is which of the model is asked of the reader itself: it reads a twin of the file in which every
tensor is filled with a number of its own.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from warmstart.errors import UserError, listing
from warmstart.inference.restore import Restored
from warmstart.methods.export.averages import averages
from warmstart.methods.export.card import own_text
from warmstart.methods.export.container import (
    Container,
    Place,
    digests,
    read_container,
    with_classes,
    write_container,
)
from warmstart.methods.export.hub_folders import has_hf_class
from warmstart.methods.export.lineage import BEGINNINGS, Lineage, lineage_of
from warmstart.models.adapters.inject import adapted_layer
from warmstart.models.build import BuiltModel
from warmstart.models.card_file import CARD
from warmstart.models.fitting import fit_names
from warmstart.models.gaps import under
from warmstart.models.hf_folder import CONFIG
from warmstart.models.metadata import is_own
from warmstart.models.weights import read_weights
from warmstart.models.zoo import outline

_NUM_EXAMPLES = 5
_FIRST = 1000  # of the numbers in a twin: no counter is as high by chance


@dataclass(frozen=True)
class Change:
    """What became of the tensors of the source: `changed` are those of the plan that training moved, by block."""

    source: str
    unchanged: int
    changed: dict[str, int]
    reshaped: tuple[str, ...]
    added: tuple[str, ...]
    averages: int  # tensors of averages beside the model's, which are the model's own now
    others: int  # tensors of the file that are none of the model's: kept
    notes: tuple[str, ...]

    def text(self) -> str:
        changed = ", ".join(f"{block} {num}" for block, num in self.changed.items())
        lines = [
            f"source {self.source}: {self.unchanged} tensors of the model are as they were, to the bit; "
            f"{sum(self.changed.values())} changed, all of the plan{f' ({changed})' if changed else ''}"
        ]
        if self.averages:
            lines.append(
                f"{self.averages} tensors of averages (EMA) are the model's own now: some programs read these first"
            )
        if self.others:
            lines.append(f"{self.others} tensors beside the model's are kept as they were (an optimizer)")
        lines += [f"another shape: {listing(self.reshaped, _NUM_EXAMPLES)}"] if self.reshaped else []
        lines += [f"added, as the file had none: {listing(self.added, _NUM_EXAMPLES)}"] if self.added else []
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Source:
    """The file at the beginning, and where in it each tensor of the model stands, by the model's names."""

    path: Path
    container: Container
    places: dict[str, Place]
    lineage: Lineage

    def file_in(self, path: Path) -> Path:
        """What is read of the files that were written as `path`."""
        return path if self.container.index is None else path / self.container.index

    @property
    def is_ours(self) -> bool:
        return any(is_own(text or {}) for text in self.container.texts.values())

    @property
    def stored(self) -> torch.dtype:
        """The type of most of its numbers."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.container.tensors.values():
            if tensor.is_floating_point():
                sizes[tensor.dtype] += tensor.numel()
        return max(sizes, key=lambda kind: sizes[kind], default=torch.float32)


def open_source_file(restored: Restored) -> Source:
    """Raises UserError: the line of runs does not begin with a file, it is gone or another one now, or what the model
    has was computed from several of its tensors."""
    lineage = lineage_of(restored)
    kind, place = lineage.source["kind"], lineage.source["path"]
    if not lineage.runs:
        raise UserError(
            f"--to source: {restored.label} is a file, and nothing is known of where it came from",
            "a run that was started from a file of weights",
            "--to safetensors",
        )
    if kind != "file":
        is_timm, is_hf = restored.built.name.startswith("timm:"), has_hf_class(restored.built)
        raise UserError(
            f"--to source: {lineage.runs[-1].path} was started from {kind} weights, and not from a file",
            "a run that was started from a file of weights",
            f"--to {'timm' if is_timm else 'hf' if is_hf else 'onnx' if kind == 'object' else 'safetensors'}",
        )
    path = Path(str(place))
    if not path.is_file():
        raise UserError(
            f"--to source: {path} is gone", "the file that the run was started from", "put it back there"
        )
    if read_weights(path).sha256 != lineage.source["sha256"]:
        raise UserError(
            f"--to source: {path} is another file than the run was started from",
            f"sha256 {lineage.source['sha256']}",
            "put the old one back there",
        )
    container = read_container(path)
    return Source(path, container, _places(container, path, restored.built), lineage)


def _places(container: Container, path: Path, built: BuiltModel) -> dict[str, Place]:
    """Where each tensor of the model stands in the file, as the reader finds them."""
    numbers = {place: _FIRST + number for number, place in enumerate(container.tensors)}
    twins = {place: _filled(container.tensors[place], number) for place, number in numbers.items()}
    by_number = {number: place for place, number in numbers.items()}
    with TemporaryDirectory() as folder:
        twin = Path(folder) / path.name
        write_container(
            container.with_tensors(twins), twin if container.index is None else Path(folder) / "s", path
        )
        if path.with_name(CONFIG).is_file():
            shutil.copy(path.with_name(CONFIG), folder)
        read = read_weights(twin if container.index is None else Path(folder) / "s" / container.index)
    state = fit_names(read, outline(built.name), built.name).state
    found = {name: _number(tensor) for name, tensor in state.items()}
    return {name: by_number[number] for name, number in found.items() if number in by_number}


def _filled(tensor: Tensor, number: int) -> Tensor:
    if tensor.is_floating_point():
        return torch.full(tensor.shape, float(number))
    has_room = tensor.dtype != torch.bool and torch.iinfo(tensor.dtype).max >= number
    return torch.full_like(tensor, number) if has_room else tensor


def _number(tensor: Tensor) -> int | None:
    """The one that fills it; None: several, or none."""
    values = tensor.unique()
    return int(values[0]) if len(values) == 1 else None


def write_source(restored: Restored, source: Source, path: Path) -> Change:
    """Write the model's tensors where the source has them, each in the source's type, and read them back.

    Raises:
        UserError: tensors of the model that have no place in the file, or that changed without being planned to.
    """
    built, tensors = restored.built, source.container.tensors
    own = {name: tensor.cpu() for name, tensor in built.module.state_dict().items()}
    head = {name for name in own if under(name, built.head)}
    added = _new_places(source, [name for name in own if name in head and name not in source.places])
    parameters = {name for name, _ in built.module.named_parameters()}
    if lost := sorted(parameters - source.places.keys() - added.keys()):
        raise UserError(
            f"--to source: {len(lost)} tensors of the model have no place in {source.path}: {listing(lost, 3)}",
            "a file with each of them under some name",
            "they were put together from others when it was read: --to safetensors",
        )
    new = {
        place: _in_type_of(own[name], tensors[place]) for name, place in source.places.items() if name in own
    }
    new |= {place: own[name].to(source.stored) for name, place in added.items()}
    twins = averages(tensors, {name: place for name, place in source.places.items() if name in own})
    new |= {place: _in_type_of(own[name], tensors[place]) for place, name in twins.items()}
    named, notes = _named(restored, source)
    write_container(named.with_tensors(new), path, source.path)
    written = read_container(source.file_in(path))
    before, after = digests(source.container), _renamed(digests(written), source, path)
    names = {place: name for name, place in source.places.items() if name in own}
    changed = [place for place, old in before.items() if place not in twins and after.get(place) != old]
    planned = {*planned_tensors(source.lineage, built), *head}
    shapes = {place: (tensors[place].shape, new[place].shape) for place in changed if place in names}
    reshaped = {names[place]: pair for place, pair in shapes.items() if pair[0] != pair[1]}
    if wrong := [
        p for p in changed if p not in names or (names[p] not in planned and names[p] not in reshaped)
    ]:
        raise UserError(
            f"--to source: {len(wrong)} tensors changed that no plan trains: {listing((str(p[-1]) for p in wrong), 3)}",
            "the frozen ones as they were, to the bit",
            "--to safetensors; and please report it",
        )
    blocks = {name: block.name for block in built.blocks for name in (*block.parameters, *block.buffers)}
    moved = [blocks.get(names[place], names[place]) for place in changed]
    return Change(
        str(source.path),
        len(names) - len(changed),
        {block: moved.count(block) for block in dict.fromkeys(moved)},
        tuple(f"{name} {_sizes(old)} -> {_sizes(now)}" for name, (old, now) in reshaped.items()),
        tuple(added),
        len(twins),
        len(tensors) - len(names) - len(twins),
        notes,
    )


def _renamed(found: Mapping[Place, str], source: Source, path: Path) -> dict[Place, str]:
    """A single file is called as was asked, not as its source."""
    if source.container.index is not None:
        return dict(found)
    return {(source.path.name, *place[1:]): digest for place, digest in found.items()}


def _in_type_of(tensor: Tensor, old: Tensor) -> Tensor:
    """What training did not move is the source's own number, of whatever type."""
    if tensor.shape == old.shape and torch.equal(tensor, old.to(tensor.dtype)):
        return old
    return tensor.to(old.dtype)


def _new_places(source: Source, names: Iterable[str]) -> dict[str, Place]:
    """Beside the model's other tensors, with their prefix, for a head that the file did not have."""
    known = next(
        ((name, place) for name, place in source.places.items() if str(place[-1]).endswith(name)), None
    )
    if known is None:
        return {}
    name, place = known
    prefix = str(place[-1]).removesuffix(name)
    return {name: (*place[:-1], prefix + name) for name in names}


def planned_tensors(lineage: Lineage, built: BuiltModel) -> set[str]:
    """What any run of the line trained by its plan: parameters, layers with adapters, statistics of norms that ran.

    A run that was made without training (a blend) has no such plan: it may have touched anything.
    """
    found: set[str] = set()
    buffers = {block.name: block.buffers for block in built.blocks}
    for run in lineage.runs:
        if run.resolved["model"]["source"]["kind"] not in BEGINNINGS:
            return set(built.module.state_dict())
        for row in run.plan["rows"]:
            layers = {name: adapted_layer(name) for name in row["trainable"]}
            found |= {name if layer is None else f"{layer}.weight" for name, layer in layers.items()}
            found |= set(buffers.get(row["name"], ())) if row["norms"] == "train" else set()
    return found


def _named(restored: Restored, source: Source) -> tuple[Container, tuple[str, ...]]:
    """The source with the model's classes where it names others, and all that a file of ours says; and a note of it."""
    read, built = read_weights(source.path), restored.built
    now = asdict(built.preprocessing)
    old = [] if source.is_ours else [key for key, value in read.preprocessing.items() if now[key] != value]
    notes = (f"{source.path.name} states another {listing(old)}: {CARD} has the model's",) if old else ()
    is_other = read.classes is not None and read.classes != built.classes and built.names_known
    if not is_other and not source.is_ours:
        return source.container, notes
    made = with_classes(source.container, built.classes, read.classes_key, own_text(restored))
    if not is_other or read.classes is None:
        return made or source.container, notes
    if made is None:  # a config.json beside it does
        told = f"what stands beside {source.path.name} names {len(read.classes)} other classes"
        return source.container, (*notes, told)
    told = f"{source.path.name} named {len(read.classes)} other classes: the file names the model's"
    return made, (*notes, told)


def told_of(restored: Restored, source: Source) -> dict[str, Any]:
    """What the file does not say of itself: one of ours says all."""
    if source.is_ours:
        return {}
    image = restored.built.preprocessing
    return {"name": restored.built.name, "image_size": image.image_size, "mean": image.mean, "std": image.std}


def _sizes(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
