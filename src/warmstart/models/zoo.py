"""Name -> model: one door to timm, torchvision, our own models and objects of the user's."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from torch import nn

from warmstart.config.ocec import contradictions, grid_problem, is_ocec, shape_of
from warmstart.errors import UserError, closest
from warmstart.models.builtin import NAMES, builtin, is_builtin, recognise
from warmstart.models.created import Created, Outline, Wanted, check_in_channels, shapes_of
from warmstart.models.heads import num_outputs
from warmstart.models.hf_zoo import check_hf, create_hf, outline_hf
from warmstart.models.image_text.prompts import ClassTexts
from warmstart.models.objects import check_kept, copy_of, create_object, outline_object
from warmstart.models.recipe import apply
from warmstart.models.sizes import Size, check_image_size
from warmstart.models.smp_zoo import check_smp, create_smp, outline_smp
from warmstart.models.timm_zoo import create_timm, import_timm, in_timm, outline_timm, timm_groups
from warmstart.models.torchvision_segmenters import create_segmenter, is_segmenter, outline_segmenter
from warmstart.models.torchvision_zoo import (
    check_torchvision,
    create_torchvision,
    outline_torchvision,
    torchvision_names,
)
from warmstart.models.without_values import without_values
from warmstart.records import Recipe

__all__ = ["create", "import_timm", "outline", "recognise", "split_name", "timm_groups"]

_ZOOS = ("timm", "torchvision", "builtin", "smp", "hf", "object")
_NUM_OUTLINES = 512  # kept; each is a small dict of shapes


def split_name(name: str) -> tuple[str, str]:
    """`timm:resnet18` or bare `resnet18` -> ("timm", "resnet18"); unknown or ambiguous names raise UserError."""
    zoo, colon, bare = name.partition(":")
    if colon:
        if zoo not in _ZOOS:
            raise UserError(
                f"unknown model zoo {zoo!r} in --model {name}",
                "timm:NAME, torchvision:NAME, builtin:NAME, smp:ARCH/ENCODER or hf:FOLDER",
                closest(zoo, _ZOOS[:-1]),
            )
        return zoo, _check_known(zoo, bare, name)
    holds = {
        "builtin": is_builtin(name),
        "timm": in_timm(name),
        "torchvision": check_torchvision(name),
    }
    found = [zoo for zoo, has in holds.items() if has]
    if len(found) > 1:
        raise UserError(
            f"{len(found)} models are called {name!r}",
            " or ".join(f"{zoo}:{name}" for zoo in found),
            "write the name with its zoo",
        )
    if found == ["builtin"]:
        return "builtin", _check_known("builtin", name, name)
    if not found:
        own = [*(f"builtin:{n}" for n in NAMES), *NAMES]
        raise _unknown(name, [*own, *import_timm().list_models(), *torchvision_names()])
    return found[0], name


def canonical(name: str) -> str:
    """The name with its zoo, as `split_name`; of several names for one built-in model, the shortest."""
    zoo, bare = split_name(name)
    return f"{zoo}:{shape_of(bare).name if zoo == 'builtin' and is_ocec(bare) else bare}"


def disagreements(asked: str, own: str) -> list[str]:
    """What the name `asked` says otherwise than `own`, in words; what it leaves open, it agrees on."""
    if asked == own:  # as a run recorded it; its folder may be gone
        return []
    asked, own = ":".join(split_name(asked)), ":".join(split_name(own))
    names = [name.removeprefix("builtin:") for name in (asked, own)]
    if all(map(is_ocec, names)):
        return contradictions(*names)
    return [] if asked == own else [f"{own} is not {asked}"]


def create(
    name: str,
    num_classes: int | None = None,
    dropout: float | None = None,
    pretrained: bool = False,
    in_channels: int | None = None,
    image_size: Size | None = None,
    texts: ClassTexts | None = None,
) -> Created:
    """Build a model; every None means the model's own default. Random parts draw from torch's CPU generator.

    UserError: unknown name, no pretrained weights or no way to fetch them, a dropout the model does not
    have, an image size it cannot run on, a number of input channels it cannot take, texts that it cannot read.
    """
    return create_wanted(name, Wanted(num_classes, dropout, pretrained, in_channels, image_size, texts))


def create_wanted(name: str, wanted: Wanted) -> Created:
    """`create` with its arguments as one record, which may also say that the image size is known to work."""
    zoo, bare = split_name(name)
    if zoo == "torchvision" and is_segmenter(bare):
        return create_segmenter(bare, wanted)
    return _MAKERS[zoo](bare, wanted)


def _create_builtin(bare: str, wanted: Wanted) -> Created:
    if wanted.pretrained:
        raise UserError(
            f"builtin:{bare} has no pretrained weights to download",
            "--weights FILE, or --weights none for random initialisation",
            "pass one of the two",
        )
    spec = builtin(bare)
    num_channels = spec.preprocessing.num_channels
    check_in_channels(f"builtin:{bare}", wanted, num_channels)
    size = wanted.image_size or spec.preprocessing.image_size
    classes = wanted.num_classes or spec.num_classes
    rate = spec.dropout if wanted.dropout is None else wanted.dropout
    if is_ocec(bare) and (problem := grid_problem(shape_of(bare), size)) is not None:
        raise problem
    if size != spec.preprocessing.image_size and not wanted.runs_there:
        check_image_size(lambda _: spec.make(classes, rate), f"builtin:{bare}", size, num_channels)
    return Created(
        module=spec.make(classes, rate),
        head=spec.head,
        preprocessing=replace(spec.preprocessing, image_size=size),
        licence=None,
        channels_last=spec.channels_last,
        classes=None,
        origin=None,
        training_only=spec.training_only,
        segments=spec.segments,
        head_block=spec.head_block,
    )


_MAKERS = {
    "timm": create_timm,
    "torchvision": create_torchvision,
    "smp": create_smp,
    "hf": create_hf,
    "object": create_object,
    "builtin": _create_builtin,
}


def outline(name: str, recipe: Recipe | None = None) -> Outline:
    """Found on the meta device, which costs no memory. `recipe` is what was made of the model since."""
    zoo, bare = split_name(name)
    if recipe is not None:
        with without_values():
            module = copy_of(bare) if zoo == "object" else create(name, num_classes=2).module
        apply(module, recipe)
        return replace(outline(name), shapes=shapes_of(module))
    if zoo == "hf":
        return outline_hf(bare)
    return outline_object(bare) if zoo == "object" else _outline(zoo, bare)


@lru_cache(_NUM_OUTLINES)
def _outline(zoo: str, bare: str) -> Outline:
    if zoo == "torchvision":
        return outline_segmenter(bare) if is_segmenter(bare) else outline_torchvision(bare)
    if zoo == "timm":
        return outline_timm(bare)
    if zoo == "smp":
        return outline_smp(bare)
    spec = builtin(bare)
    with without_values():
        module = spec.make(2, spec.dropout)
    shapes = shapes_of(module)
    first = next((path for path, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)
    return Outline(
        spec.head,
        first,
        False,
        shapes,
        spec.preprocessing.image_size,
        spec.segments,
        training_only=spec.training_only,
        has_pair=num_outputs(module, spec.head) > shapes[f"{spec.head}.weight"][0],
    )


def _check_known(zoo: str, bare: str, name: str) -> str:
    """`bare` as its zoo spells it."""
    if zoo == "smp":
        return check_smp(bare)
    if zoo == "hf":
        return check_hf(bare)
    if zoo == "builtin":
        if not is_builtin(bare):
            raise _unknown(name, [f"builtin:{n}" for n in NAMES])
        builtin(bare)  # raises for a variant that there is none of
        return bare
    if zoo == "torchvision":
        if not check_torchvision(bare):
            raise _unknown(name, [f"torchvision:{n}" for n in torchvision_names()])
        return bare
    if zoo == "object":
        check_kept(bare)
        return bare
    if in_timm(bare):
        return bare
    arch = bare.partition(".")[0]
    timm = import_timm()
    known = timm.list_pretrained(f"{arch}.*") if timm.is_model(arch) else timm.list_models()
    raise _unknown(name, [f"timm:{n}" for n in known])


def _unknown(name: str, options: list[str]) -> UserError:
    return UserError(
        f"unknown model {name!r}",
        "timm:NAME, timm:NAME.TAG, torchvision:NAME, smp:ARCH/ENCODER, hf:FOLDER or builtin:NAME "
        f"(builtin: {', '.join(NAMES)})",
        closest(name, options) or "python -c 'import timm; print(timm.list_models())' lists timm's names",
    )
