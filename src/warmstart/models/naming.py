"""Which model it is: as the settings name it, or as a file of weights says or looks like."""

from __future__ import annotations

from warmstart.config.ocec import contradictions, is_ocec
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.hf_zoo import remember_config
from warmstart.models.image_text.prompts import split_head
from warmstart.models.mismatch import explain_unknown
from warmstart.models.weights import WeightsFile
from warmstart.models.zoo import canonical, split_name


def resolve_name(settings: ModelConfig, file: WeightsFile | None) -> str:
    """The model's name with its zoo: from the settings, else from what the file says or looks like."""
    found = None if file is None else file.arch
    if found is not None and file is not None and file.hf_config is not None:
        remember_config(found.partition(":")[2], file.hf_config)
    asked = ":".join(split_name(settings.name)) if settings.name else None
    if file is None:
        if asked is None:
            raise UserError(
                "no model named", "--model NAME, or --weights FILE that names its model", "pass one"
            )
        return canonical(asked)
    if asked is None and found is None:
        raise explain_unknown(file.state, str(file.path))
    if asked is None:
        assert found is not None
        return canonical(found)
    if found is not None and all(is_ocec(name.removeprefix("builtin:")) for name in (asked, found)):
        return _same_ocec(asked, found, file)
    if found is not None and _architecture(found) != _architecture(asked):
        raise UserError(
            f"--model {asked}, but {file.path} holds weights of {found}",
            "a model and weights of one architecture",
            f"leave --model out, or pass other --weights (none: random initialisation) for {asked}",
        )
    # The head of an image-text model is the file's, whatever the folder in its name.
    return canonical(found if found is not None and split_head(found)[0] == asked else asked)


def _same_ocec(asked: str, found: str, file: WeightsFile) -> str:
    """The file's own name; what the one asked for does not say, the file decides. UserError where they disagree."""
    differing = contradictions(asked.removeprefix("builtin:"), found.removeprefix("builtin:"))
    if differing:
        raise UserError(
            f"{file.path} holds weights of {found}: {'; '.join(differing)}",
            "the architecture that the checkpoint was trained with",
            f"leave these settings out, and the file's are taken ({canonical(found)}); or pass other --weights",
        )
    return canonical(found)


def _architecture(name: str) -> str:
    """The name without zoo, pretrained tag and head of texts: `timm:resnet18.a1_in1k` and `resnet18` are one."""
    return split_head(name)[0].rpartition(":")[2].partition(".")[0]
