"""What a file's classifier answers with, where it is kept as it is: classes, threshold, margin."""

from __future__ import annotations

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError, listing
from warmstart.models.created import Created
from warmstart.models.gaps import compare, full_prefixes
from warmstart.models.heads import margin_of
from warmstart.models.mismatch import explain
from warmstart.models.weights import WeightsFile
from warmstart.models.zoo import create, outline
from warmstart.records import Decision, Margin, Thresholds


def own_classes(file: WeightsFile | None, name: str) -> tuple[str, ...]:
    """The classes of a file's classifier, by number where it does not name them; without a file, of a zoo's model."""
    if file is None:
        return _pretrained_classes(name)
    if file.classes is not None:
        return file.classes
    known = outline(name)
    rows = file.state.get(f"{known.head}.weight")
    if rows is None or not rows.ndim:
        if not full_prefixes(file.shapes, known):
            gaps, _ = compare(file.shapes, known.shapes, known.head)
            raise explain(file.state, known.shapes, gaps, str(file.path), name)
        raise UserError(
            f"{file.path} holds no classifier that is one linear layer",
            "weights of a whole model",
            "`warmstart finetune` gives it a new head",
        )
    num = 2 if rows.shape[0] == 1 and known.has_pair else rows.shape[0]
    return tuple(str(number) for number in range(num))


def _pretrained_classes(name: str) -> tuple[str, ...]:
    found = create(name, pretrained=True).classes
    if not found:
        raise UserError(
            f"{name} comes without names of classes to answer with",
            "a classifier that names its classes (hf:FOLDER), a run, or a file of weights",
            "`warmstart finetune` gives it a head; `warmstart evaluate --zero-shot` asks a CLIP by texts",
        )
    return found


def own_decision(file: WeightsFile, classes: tuple[str, ...]) -> Decision | None:
    decision = file.decision
    if decision is not None and (len(classes) != 2 or decision.positive not in classes):
        raise UserError(
            f"{file.path} answers with {decision.positive!r} or not, and its classes are {listing(classes)}",
            "two classes, one of them the positive one",
            "save the file again without the entry `decision`",
        )
    return decision


def own_thresholds(file: WeightsFile, classes: tuple[str, ...]) -> Thresholds | None:
    thresholds = file.thresholds
    if thresholds is not None and len(thresholds.values) != len(classes):
        raise UserError(
            f"{file.path} has {len(thresholds.values)} thresholds for {len(classes)} labels",
            "one for each",
            "save the file again without the entry `thresholds`",
        )
    return thresholds


def own_margin(created: Created, file: WeightsFile | None) -> Margin | None:
    """The margin head that the weights have: as a file of ours states, else as the architecture has it.

    A linear classifier has a bias.
    """
    own = margin_of(created.module, created.head)
    if file is None or file.margin is not None:
        return own if file is None else file.margin
    return None if f"{created.head}.bias" in file.state else own


def check_random(settings: ModelConfig) -> None:
    """UserError where random weights are asked for of an object, which brings its own."""
    if settings.weights == "none" and (settings.name or "").startswith("object:"):
        raise UserError(
            f"--weights none: the weights of {settings.name} are the object's own",
            "no --weights (the object's own), or a file",
            "pass a freshly built object to start from random weights",
        )
