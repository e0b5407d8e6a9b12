"""Which head an image-text model gets, of which texts; and what of the section `text` a model has no use for."""

from __future__ import annotations

from warmstart.config.text_section import TextConfig
from warmstart.errors import UserError
from warmstart.models.hf_zoo import has_text_tower
from warmstart.models.image_text.prompts import (
    CONTRASTIVE,
    LINEAR,
    ZERO_SHOT,
    ClassTexts,
    Texts,
    class_prompts,
    split_head,
    with_head,
)
from warmstart.models.weights import WeightsFile
from warmstart.records import Margin


def named_head(name: str, text: TextConfig, file: WeightsFile | None, random: bool) -> str:
    """The model's name with its head: that of the file, else as the settings ask for.

    UserError: settings of the section `text` that this model cannot have.
    """
    given = [leaf for leaf, field in TextConfig.model_fields.items() if getattr(text, leaf) != field.default]
    zoo, _, bare = name.partition(":")
    if zoo != "hf" or not has_text_tower(bare):
        if given:
            raise UserError(
                f"--text.{given[0]}: {name} has no text tower",
                "a CLIP or SigLIP: --model hf:FOLDER",
                f"leave {' and '.join(f'--text.{leaf}' for leaf in given)} out",
            )
        return name
    place, own = split_head(bare)
    states_head = file is not None and file.arch is not None
    head = own if states_head or own != LINEAR or text.head == "auto" else text.head
    if text.head not in ("auto", head):
        raise UserError(
            f"--text.head {text.head}: {name if file is None else file.path} has the head {head}",
            f"--text.head {head}, or none",
            f"start from the folder of the pretrained model: --model hf:{place}, without --weights",
        )
    _check(text, head, states_head, is_file=file is not None, random=random)
    return f"hf:{with_head(place, head)}"


def _check(text: TextConfig, head: str, states_head: bool, is_file: bool, random: bool) -> None:
    """Raises UserError for what this head does not read, and for weights that it cannot be made of."""
    if head != LINEAR and (random or (is_file and not states_head)):
        raise UserError(
            f"--text.head {head} needs the weights of both towers"
            + ("" if random else ", and --weights names a file that says nothing about itself"),
            "the folder of a pretrained model, or a run",
            "--model hf:FOLDER, without --weights",
        )
    unread = {
        "prompts": head == LINEAR or (head == ZERO_SHOT and is_file),
        "tower": head != CONTRASTIVE,
        "captions": head != CONTRASTIVE,
    }
    for leaf, is_unread in unread.items():
        if is_unread and getattr(text, leaf) != TextConfig.model_fields[leaf].default:
            of_file = head == ZERO_SHOT and leaf == "prompts"
            raise UserError(
                f"--text.{leaf} has no effect with the head {head}"
                + (", whose rows the weights bring along" if of_file else ""),
                "--text.head contrastive" if leaf != "prompts" else "--text.head zero-shot or contrastive",
                "start from the folder of the pretrained model" if of_file else f"leave --text.{leaf} out",
            )


def texts_for(
    name: str, text: Texts, classes: tuple[str, ...], file: WeightsFile | None
) -> ClassTexts | None:
    """The texts that the head of an image-text model is made of, if it is; None for another model."""
    zoo, _, bare = name.partition(":")
    if zoo != "hf" or not has_text_tower(bare):
        return None
    head, given = split_head(bare)[1], text.settings.prompts
    processor = None if file is None else text.processor
    is_made = head == LINEAR or (head == ZERO_SHOT and file is not None)
    if is_made or (file is not None and not given and classes == file.classes):
        return ClassTexts(classes, None, processor)
    prompts = class_prompts(given, classes) if text.prompts is None else text.prompts
    return ClassTexts(classes, prompts, processor)


def check_margin(name: str, margin: Margin | None) -> Margin | None:
    """The margin; UserError for a margin head on top of rows that are texts."""
    head = split_head(name)[1]
    if margin is not None and head != LINEAR:
        raise UserError(
            f"--margin-method {margin.method}: the head {head} classifies by texts already",
            "--text.head linear",
            "--margin-method none",
        )
    return margin
