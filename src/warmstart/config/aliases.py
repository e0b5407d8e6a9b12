"""The founding documents' flag names: what each becomes here, or why it means nothing here.

One table per command, applied to the command line before it is parsed; every use is printed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from warmstart.errors import UserError


@dataclass(frozen=True)
class Alias:
    """`becomes(value)` gives the tokens in force; an empty result means the flag does nothing, and `why` says so."""

    becomes: Callable[[str], list[str]]
    why: str = ""
    takes_value: bool = True


def _to(flag: str) -> Alias:
    return Alias(lambda value: [flag, value])


def _dead(why: str) -> Alias:
    return Alias(lambda value: [], why, takes_value=False)


def _no_accelerator(system: str, why: str) -> Alias:
    """`--no-cuda` (or `--no-mps`) forbids the accelerator that this system could have, else does nothing."""
    matters = (platform.system() == "Darwin") == (system == "Darwin")
    return Alias(lambda value: ["--device", "cpu"], "", takes_value=False) if matters else _dead(why)


_DATA = {name: _to("--data") for name in ("dataset", "data-root", "data-dir")}
_SHARED = {
    **_DATA,
    "num-workers": _to("--workers"),
    "test-batch-size": _to("--eval-batch-size"),
    "no-cuda": _no_accelerator("Linux", "no CUDA on macOS"),
    "no-mps": _no_accelerator("Darwin", "MPS exists on macOS only"),
}
_FINETUNE = {
    **_SHARED,
    "model-path": _to("--weights"),
    "pretrain": _to("--weights"),
    "checkpoint": _to("--weights"),
    "learning-rate": _to("--lr"),
    "base-learning-rate": _to("--lr"),
    "num-epochs": _to("--epochs"),
    "max-grad-norm": _to("--clip"),
    "gradient-accumulation-steps": _to("--accumulate"),
    "early-stopping-patience": _to("--patience"),
    "dir": Alias(lambda value: ["--runs-dir", value], "TensorBoard finds RUN/tb below it"),
    "save-model-dir": Alias(
        lambda value: ["--save-as", f"{value.rstrip('/')}/mnist_cnn_finetuned.pt"], "the document's file name"
    ),
    "log-interval": Alias(lambda value: ["--log-every", f"{value}steps"]),
    "val-interval": Alias(lambda value: ["--eval-every", "1epochs" if value == "0" else f"{value}steps"]),
    "warmup-epochs": Alias(lambda value: ["--warmup", f"{value}epochs"]),
    "freeze-conv": Alias(lambda value: ["--freeze", "conv*"], takes_value=False),
    "use-amp": Alias(lambda value: ["--precision", "auto"], "half precision where the device has it", False),
    "save-model": _dead("the best model is always saved"),
}
_MODEL_READERS = {
    **_SHARED,
    "test-batch-size": _to("--batch-size"),
    "checkpoint": Alias(lambda value: [value]),
    "model-path": Alias(lambda value: [value]),
}
ALIASES: dict[str, dict[str, Alias]] = {
    "finetune": _FINETUNE,
    "evaluate": _MODEL_READERS,
    "check": _MODEL_READERS,
    "predict": {
        **{name: alias for name, alias in _MODEL_READERS.items() if name not in _DATA},
        "image": Alias(lambda value: ["--images", value]),
        "image-dir": Alias(lambda value: ["--images", value]),
    },
}


def translate(command: str, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with every alias replaced, and one note per alias that was met.

    Raises:
        UserError: an alias without the value it needs, or with one it does not take.
    """
    table = ALIASES.get(command, {})
    result: list[str] = []
    notes: list[str] = []
    pending = list(tokens)
    while pending:
        token = pending.pop(0)
        name, has_value, value = token.removeprefix("--").partition("=")
        alias = table.get(name.replace("_", "-")) if token.startswith("--") else None
        if alias is None:
            result.append(token)
            continue
        if has_value and not alias.takes_value:
            raise UserError(f"{token}: --{name} takes no value", f"--{name} alone, or nothing")
        if alias.takes_value and not has_value:
            value = "" if not pending or pending[0].startswith("--") else pending.pop(0)
        if alias.takes_value and not value:
            raise UserError(f"--{name} has no value", f"--{name} VALUE")
        given = f"--{name} {value}".rstrip() if alias.takes_value else f"--{name}"
        becomes = alias.becomes(value)
        result += becomes
        reason = f" ({alias.why})" if alias.why else ""
        notes.append(
            f"{given} is {' '.join(becomes)}{reason}"
            if becomes
            else f"{given} has no effect here: {alias.why}"
        )
    return result, notes
