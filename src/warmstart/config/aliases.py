"""The founding documents' flags: what each becomes here, or why it means nothing here.

One table per command, applied to the command line before it is parsed; every use is printed. The keys of the
documents' YAML files are in yaml_aliases.py.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from itertools import takewhile
from pathlib import Path

from warmstart.config import stage_aliases
from warmstart.config.ocec import FAMILY, joined_name
from warmstart.errors import UserError, listing


@dataclass(frozen=True)
class Alias:
    """`becomes(value)` gives the tokens in force; an empty result means the flag does nothing, and `why` says so."""

    becomes: Callable[[str], list[str]]
    why: str = ""
    takes_value: bool = True
    joins: bool = False  # with others of its kind into one setting: `becomes` is what it is alone
    is_glob: bool = False  # the shell may have made several values of one
    needs: str = ""  # a flag without which this one would do nothing
    fix: str = ""  # what to do instead, of a flag that is refused


def _to(flag: str) -> Alias:
    return Alias(lambda value: [flag, value])


def _filled(tokens: list[str]) -> Callable[[str], list[str]]:
    """Tokens with the value where they say VALUE."""
    return lambda value: [token.replace("VALUE", value) for token in tokens]


def _ocec(start: str = "") -> Alias:
    """One part of the name of a built-in model; the parts are put together. `auto` is what a name does not say."""

    def becomes(value: str) -> list[str]:
        return ["--model", f"builtin:{FAMILY}" + ("" if value == "auto" else f"-{start}{value}")]

    return Alias(becomes, "a part of the model's name")


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
# The flags of document 001's program that say which model it is.
_OCEC = {
    "arch-variant": _ocec(),
    "head-variant": _ocec(),
    "base-channels": _ocec("c"),
    "num-blocks": _ocec("b"),
    "token-mixer-grid": _ocec("g"),
    "token-mixer-layers": _ocec("l"),
}
_FINETUNE = {
    **_SHARED,
    **_OCEC,
    "model-path": _to("--weights"),
    "pretrain": Alias(lambda value: ["--weights", value], is_glob=True),
    "test-ratio": Alias(lambda value: [], "what --train-ratio and --val-ratio leave is the test split"),
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
    "hard-neg-weight": Alias(lambda value: ["--mine-weight", value], needs="mine"),
    "hard-neg-min-prob": Alias(lambda value: ["--mine-prob", value], needs="mine"),
    "enable-hard-negative-mining": Alias(
        lambda value: [], "--mine itself switches it on", takes_value=False, needs="mine"
    ),
    "pseudo-update-start-epoch": Alias(
        lambda value: [],
        "refused: a model that is taught what it thinks already confirms its own mistakes",
        fix="`warmstart evaluate RUN --split train` lists the images that look mislabelled, to be corrected by hand",
    ),
}
_FINETUNE |= {
    name: Alias(_filled(tokens), takes_value=name not in stage_aliases.SWITCHES, joins=True)
    for name, tokens in stage_aliases.ALONE.items()
}
_FINETUNE |= {
    name: Alias(lambda value: [], why, takes_value=name not in stage_aliases.SWITCHES)
    for name, why in stage_aliases.DEAD.items()
}
_FINETUNE |= {
    name: Alias(lambda value: [], why, takes_value=False, fix=fix)
    for name, (why, fix) in stage_aliases.REFUSED.items()
}
_MODES = {"preserve": "all", "hybrid": "optimizer", "reset": "weights"}
_CONTINUE = {
    **{name: alias for name, alias in _FINETUNE.items() if name not in ("model-path", "pretrain")},
    "checkpoint": Alias(lambda value: [value], "the parent"),
    "reset-optimizer": Alias(lambda value: ["--keep", "weights"], takes_value=False),
    "mode": Alias(lambda value: ["--keep", _MODES.get(value, value)]),
}
_MODEL_READERS = {
    **_SHARED,
    "test-batch-size": _to("--batch-size"),
    "checkpoint": Alias(lambda value: [value]),
    "model-path": Alias(lambda value: [value]),
}
ALIASES: dict[str, dict[str, Alias]] = {
    "finetune": _FINETUNE,
    "continue": _CONTINUE,
    "evaluate": _MODEL_READERS,
    "check": _MODEL_READERS,
    "predict": {
        **{name: alias for name, alias in _MODEL_READERS.items() if name not in _DATA},
        "image": Alias(lambda value: ["--images", value]),
        "image-dir": Alias(lambda value: ["--images", value]),
    },
    "prepare": {"no-download": _dead("nothing is downloaded; name the folder of the images")},
}


def translate(command: str, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line with every alias replaced, and one note per alias that was met.

    Raises:
        UserError: an alias without the value it needs, or with one it does not take.
    """
    table = ALIASES.get(command, {})
    result: list[str] = []
    notes: list[str] = []
    joined: dict[str, str] = {}
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
        if alias.is_glob and (others := _values_at(pending)):
            del pending[: len(others)]
            value = _unexpanded([value, *others], name)
        given = f"--{name} {value}".rstrip() if alias.takes_value else f"--{name}"
        if alias.joins:
            joined[name.replace("_", "-")] = value
            continue
        if alias.fix:
            raise UserError(f"{given}: {alias.why}", fix=alias.fix)
        if alias.needs and not any(
            t.partition("=")[0].strip("-").replace("_", "-") == alias.needs for t in tokens
        ):
            raise UserError(
                f"{given} does nothing by itself",
                f"--{alias.needs} RUN beside it: the predictions of an earlier run",
                f"`warmstart evaluate RUN --split train`, then --{alias.needs} RUN",
            )
        becomes = alias.becomes(value)
        result += becomes
        reason = f" ({alias.why})" if alias.why else ""
        notes.append(
            f"{given} is {' '.join(becomes)}{reason}"
            if becomes
            else f"{given} has no effect here: {alias.why}"
        )
    if joined:
        tokens, dead = stage_aliases.joined(joined)
        used = [f"--{name} {value}".rstrip() for name, value in joined.items() if name not in dead]
        result += tokens
        notes += [f"{' '.join(used)} is {' '.join(tokens)}"] if used else []
        notes += [f"--{name} {joined[name]} has no effect here: {why}" for name, why in dead.items()]
    return _with_one_model(result), notes


def _values_at(tokens: Sequence[str]) -> list[str]:
    """Those up to the next flag."""
    return list(tokens[: next((at for at, token in enumerate(tokens) if token.startswith("-")), len(tokens))])


def _unexpanded(files: list[str], name: str) -> str:
    """The glob that the shell has made these files of, so that the best of them can be chosen."""
    shared = "".join(
        same[0] for same in takewhile(lambda found: len(set(found)) == 1, zip(*files, strict=False))
    )
    pattern = f"{shared}*{Path(files[0]).suffix}"
    if sorted(glob(pattern)) != sorted(files):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        raise UserError(
            f"--{name} has {len(files)} values: {listing(files, 3)}",
            "one file, or a glob, of whose files the best is taken",
            f"--{name} 'FOLDER/ocec_best_epoch*.pt', in quotes",
        )
    return pattern


def _with_one_model(tokens: list[str]) -> list[str]:
    """The parts of a model's name, each given by a flag of the document, as one --model."""
    start = f"builtin:{FAMILY}"
    places = [
        at for at, token in enumerate(tokens[:-1]) if token == "--model" and tokens[at + 1].startswith(start)
    ]
    if len(places) < 2:
        return tokens
    name = joined_name([tokens[at + 1] for at in places])
    kept = [token for at, token in enumerate(tokens) if at not in places and at - 1 not in places]
    return [*kept, "--model", name]
