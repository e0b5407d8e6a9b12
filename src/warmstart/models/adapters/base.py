"""The model that an adapter folder was trained on: found, told by its hash, and joined with the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from warmstart.config.places import absolute
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.adapters.files import Adapter, identity, is_under
from warmstart.models.adapters.inject import adapted_layer
from warmstart.models.hf_folder import CONFIG
from warmstart.models.image_text.prompts import LINEAR, split_head, with_head
from warmstart.models.weights import WeightsFile
from warmstart.models.zoo import outline
from warmstart.records import Base, Lora

if TYPE_CHECKING:
    from warmstart.models.build import BuiltModel

_BUILT_FOR = frozenset({"mean", "std", "image_size", "crop_pct"})  # what a model is built to take
# Settings, preprocessing, classes (None: the file's), seed -> a model: models.build.build, which imports this file.
Build = Callable[[ModelConfig, Mapping[str, Any], "tuple[str, ...] | None", int], "BuiltModel"]


def on_base(
    file: WeightsFile, name: str | None, build: Build, given: str | None = None, force: bool = False
) -> WeightsFile:
    """The file of the whole model, adapters beside its base: of a file that holds an adapter folder's tensors alone.

    The base is the one that the folder names, the zoo's model `name`, or `given`, which is a file or a zoo's name.

    Raises:
        UserError: the base cannot be found, or is not the one it was trained on and `force` is not given.
    """
    adapter = file.adapter
    assert adapter is not None, f"{file.path} is no adapter"
    settings = _base_settings(file, adapter, name, given)
    stated = {key: value for key, value in file.preprocessing.items() if key in _BUILT_FOR}
    built = build(settings, stated, _classes(file, settings, adapter), 0)
    base, label = built.module.state_dict(), settings.weights or str(settings.name)
    is_same_file = adapter.base is not None and adapter.base.file_sha256 == built.source["sha256"] is not None
    told = (
        ""  # what was computed from the file (resampled, merged) may differ by rounding between machines
        if is_same_file
        else _compare(adapter, identity(base, adapter.replaced, file.state.keys()), label, force)
    )
    _check_shapes(base, file, adapter, label)
    names = built.classes if built.names_known else None
    has_head = any(is_under(key, (built.head,)) for key in file.state)
    kept = {key: tensor for key, tensor in base.items() if not is_under(key, adapter.replaced)}
    return replace(
        file,
        state={**kept, **file.state},
        arch=built.name,
        classes=file.classes or (None if has_head else names),
        preprocessing={**asdict(built.preprocessing), **file.preprocessing},
        notes=(
            *file.notes,
            f"adapter {adapter.folder} ({_words(adapter.lora)}) on {label}{told}",
            *_counted_twice(adapter, base),
        ),
        base=base_of(built.source),
        adapter=None,
        recipe=built.recipe,
    )


def base_of(source: Mapping[str, str | None]) -> Base:
    """What adapters stand on that are put on weights of this record; a file is found from anywhere."""
    path = source["path"]
    is_file = source["kind"] == "file"
    return Base(
        str(source["kind"]),
        absolute(path) if path and is_file else path,
        file_sha256=source["sha256"] if is_file else None,
    )


def _base_settings(file: WeightsFile, adapter: Adapter, name: str | None, given: str | None) -> ModelConfig:
    """The model and the weights to build the base from."""
    base, model = adapter.base, file.arch or name
    if given is not None:
        is_there = Path(given).expanduser().exists()
        return (
            ModelConfig(name=model, weights=given)
            if is_there
            else ModelConfig(name=_with_head_of(model, given))
        )
    if base is not None and base.kind == "file" and Path(str(base.path)).exists():
        return ModelConfig(name=model, weights=base.path)
    if base is not None and base.kind not in ("file", "random"):
        return ModelConfig(name=model)
    if name is not None:
        return ModelConfig(name=name)
    if base is not None:
        gone = (
            f"{base.path}, which is gone" if base.kind == "file" else "random weights, which are in no file"
        )
        raise _no_base(adapter, f"was trained on {gone}")
    named = adapter.named or ""
    if named and Path(named).expanduser().exists():
        is_model = (Path(named).expanduser() / CONFIG).is_file()
        return ModelConfig(name=f"hf:{named}") if is_model else ModelConfig(weights=named)
    if named.count("/") == 1 and not named.startswith((".", "/", "~")):
        return ModelConfig(name=f"hf:{named}")
    raise _no_base(adapter, f"names {named!r} as its base" if named else "names no base")


def _with_head_of(model: str | None, given: str) -> str:
    """The name of an image-text model with the head that the adapter was trained with, where it names none."""
    place, own = split_head(given)
    is_tower = own == LINEAR and model is not None and {model[:3], given[:3]} == {"hf:"}
    return with_head(place, split_head(model)[1]) if is_tower and model is not None else given


def _no_base(adapter: Adapter, what: str) -> UserError:
    return UserError(
        f"the adapter in {adapter.folder} {what}",
        "the model that it was trained on",
        f"warmstart merge {adapter.folder} --base FILE (or a zoo's name); merging the run itself needs no base",
    )


def _classes(file: WeightsFile, settings: ModelConfig, adapter: Adapter) -> tuple[str, ...] | None:
    """The classes to build the base for: the adapter's, by number where it does not name them; None: the base's own."""
    if file.classes is not None or settings.name is None:
        return file.classes
    rows = file.state.get(f"{outline(settings.name).head}.weight")
    if rows is not None:
        return tuple(map(str, range(len(rows))))
    if settings.weights is None:
        raise UserError(
            f"the adapter in {adapter.folder} holds no classifier, and that of {settings.name} is for other classes",
            "an adapter that was saved with its head (peft: modules_to_save)",
            "where the head that it was trained with is known: warmstart merge --base FILE",
        )
    return None


def _compare(adapter: Adapter, found: str, label: str, force: bool) -> str:
    """In words whether the base is the adapter's own. UserError: it is another one, unless `force`."""
    if adapter.base is None:
        return ", which no record of ours tells from other bases"
    recorded = str(adapter.base.sha256)
    if found == recorded:
        return ""
    if force:
        return f", ANOTHER BASE than it was trained on ({found[:12]} instead of {recorded[:12]}): --force"
    raise UserError(
        f"{label} is not the base that the adapter in {adapter.folder} was trained on: its tensors have the sha256 "
        f"{found[:12]}..., and {recorded[:12]}... is recorded",
        f"the weights it was trained on ({adapter.base.path or adapter.base.kind})",
        f"to join them all the same: warmstart merge {adapter.folder} --base {label} --force",
    )


def _check_shapes(base: Mapping[str, Tensor], file: WeightsFile, adapter: Adapter, label: str) -> None:
    for path in dict.fromkeys(path for name in file.adapters if (path := adapted_layer(name)) is not None):
        weight = base.get(f"{path}.in_proj_weight", base.get(f"{path}.weight"))
        a, b = (file.adapters.get(f"{path}.lora_{part}.weight") for part in "AB")
        if weight is None or a is None or b is None or (len(b), *a.shape[1:]) != tuple(weight.shape):
            shapes = [None if t is None else tuple(t.shape) for t in (a, b, weight)]
            raise UserError(
                f"the adapter in {adapter.folder} does not fit {label}: at {path} A is {shapes[0]} and B {shapes[1]}, "
                f"and the base has {shapes[2] or 'no such layer'}",
                "the model that it was trained on",
                f"warmstart merge {adapter.folder} --base FILE (or a zoo's name)",
            )


def _counted_twice(adapter: Adapter, base: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Where peft computes something else than its adapter says: its attention merges the output projection's twice."""
    attentions = [path for path in adapter.lora.targets if f"{path}.in_proj_weight" in base]
    if adapter.base is not None or not attentions:
        return ()
    return (
        f"peft 0.21 adds the update of {attentions[0]}.out_proj twice where it computes, and here it is added once",
    )


def _words(lora: Lora) -> str:
    bits = "" if lora.bits is None else f", base in {lora.bits} bits"
    return f"{lora.kind}, rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.targets)} layers{bits}"
