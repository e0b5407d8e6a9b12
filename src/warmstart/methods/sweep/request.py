"""What was asked of a sweep, and its folder: checked before the first run, and found again when it goes on."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from warmstart.config import io as config_io
from warmstart.config.io import Loaded
from warmstart.config.places import check_on_disk
from warmstart.config.schema import leaves
from warmstart.config.sweep_section import DEFAULT_TRIALS, HIDDEN, OF_EXECUTION, SweepConfig
from warmstart.config.sweep_values import Choice, written
from warmstart.console import log
from warmstart.errors import UserError, closest
from warmstart.methods.trials.trial import Trial
from warmstart.run import layout, writer

_FORMAT = 1
_MOST_COMBINATIONS = 1000
_MOST_TOLD = 8
# What a trial must have in common with the others to be compared with them, or has as its own place.
_NOT_VARIED = {
    **dict.fromkeys(
        (
            *(
                "data.path",
                "data.train_ratio",
                "data.val_ratio",
                "data.group",
                "data.label_columns",
                "data.masks",
            ),
            *("data.mask_classes", "data.mask_remap", "data.mask_colours", "data.ignore", "data.mix_classes"),
            *("tasks.data", "tasks.first", "task.positive"),
        ),
        "trials on other data, or with other classes, cannot be compared",
    ),
    **dict.fromkeys(("train.select_by", "tasks.select"), "trials are compared by it"),
    "train.seed": "it divides the data too, and chance is no setting to choose",
    "train.device": "--devices says where trials compute",
}


@dataclass(frozen=True)
class Request:
    """A sweep in its folder: the settings that all trials share (as a file there), and what is varied."""

    folder: Path
    settings: SweepConfig
    base: Loaded
    cwd: Path

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same to go on, and on another machine: not how much of it, nor where it computes."""
        config = self.base.config.model_dump(mode="json", exclude={"output": True})
        config["train"].pop("device")
        config["data"].pop("workers")
        own = self.settings.model_dump(mode="json", exclude={*OF_EXECUTION, "storage"})
        return {**own, "method": self.settings.searched_by, "base": config}

    @property
    def name(self) -> str:
        """Of the study in a storage: the same settings share one."""
        text = json.dumps(self.identity, sort_keys=True)
        return f"warmstart-{sha256(text.encode()).hexdigest()[:12]}"

    @property
    def num_trials(self) -> int:
        if self.settings.searched_by == "grid":
            return len(grid_of(self.settings))
        return self.settings.trials or DEFAULT_TRIALS

    def trial(self, number: int, values: dict[str, str]) -> Trial:
        """UserError: values that contradict each other, or the config."""
        loaded = config_io.load(dict(values), str(self.folder / layout.SWEEP_BASE))
        return Trial(number, self.folder.absolute() / layout.TRIALS / f"{number:04}", loaded, self.cwd)


def check_packages(engine: str) -> None:
    """Before anything is spent. UserError: packages that are not installed."""
    needed = ("sweep", "optuna"), ("ray", "ray")
    missing = [(extra, package) for extra, package in needed if package != "ray" or engine == "ray"]
    missing = [(extra, package) for extra, package in missing if find_spec(package) is None]
    if missing:
        raise UserError(
            f"a sweep needs {' and '.join(package for _, package in missing)}, which is not installed",
            "the extra's packages",
            f"pip install 'warmstart[{','.join(extra for extra, _ in missing)}]'",
        )


def check(settings: SweepConfig, config: str, base: Loaded) -> None:
    """Every name and every value against the schema.

    Raises:
        UserError: all that is wrong, at once.
    """
    by_flag = {leaf.flag: leaf for leaf in leaves()}
    by_path = {leaf.path: leaf.flag for leaf in leaves()}
    found = []
    for name, _ in settings.set:
        leaf, of_path = by_flag.get(name), by_path.get(name.replace("-", "_"))
        if leaf is None:
            fix = f"its flag: --set {of_path}=..." if of_path else closest(name, by_flag)
            found.append(UserError(f"--set {name}: there is no such setting", fix=fix))
        elif leaf.section == "output" or leaf.path in _NOT_VARIED:
            why = _NOT_VARIED.get(leaf.path, "every trial has its own place")
            found.append(UserError(f"--set {name}: {why}", "settings of the training", "leave it out"))
    if found:
        raise UserError.of_problems(found, "the sweep")
    check_on_disk(base.config, "every trial is a process of its own")
    told: dict[str, UserError] = {}
    samples = []
    for values in _samples(settings):
        try:
            samples.append(config_io.load(dict(values), config))
        except UserError as error:
            told.setdefault(str(error), error)
    if any(loaded.config.meta.is_on for loaded in samples):
        told["meta"] = UserError(
            "a sweep of --meta: a run that learns from episodes is measured on test too, and has no classes of its own",
            "settings of other training",
            "`warmstart finetune` for each, and `warmstart show` to compare them",
        )
    dead = {name: _without_effect(name, samples) for name, _ in settings.set}
    told |= {name: UserError(f"--set: {why}", fix=f"leave {name} out") for name, why in dead.items() if why}
    if told:
        raise UserError.of_problems([*told.values()][:_MOST_TOLD], "the values of the sweep")
    for warning in dict.fromkeys(warning for loaded in samples for warning in loaded.warnings):
        log.warning(warning)
    _warn_of_unread(settings, base)


def _without_effect(name: str, samples: list[Loaded]) -> str | None:
    """Why a setting is read in no sample; one that is read in some of them may be varied."""
    found = [
        next((warning for warning in loaded.warnings if warning.startswith(f"--{name} has no effect")), None)
        for loaded in samples
    ]
    return found[0] if found and None not in found else None


def _warn_of_unread(settings: SweepConfig, base: Loaded) -> None:
    output = base.config.output
    for leaf in leaves():
        if leaf.path in ("output.output_dir", "output.name", "output.save_as") and getattr(output, leaf.name):
            log.warning("--%s has no effect in a sweep: every trial has its own place", leaf.flag)
    is_grid = settings.searched_by == "grid"
    num = len(grid_of(settings)) if is_grid else settings.trials or DEFAULT_TRIALS
    if "prune" in settings.model_fields_set and settings.prune == "median" and num < 5:
        log.warning("--prune median has no effect with %d trials: it begins when four have finished", num)


def grid_of(settings: SweepConfig) -> list[dict[str, str]]:
    """Every combination, the last setting varying fastest. UserError: more of them than anybody waits for."""
    names = [name for name, _ in settings.set]
    values = [values.grid or () for _, values in settings.set]
    num = math.prod(map(len, values))
    if num > _MOST_COMBINATIONS:
        raise UserError(
            f"the grid has {num} combinations", f"at most {_MOST_COMBINATIONS}", "--method tpe --trials 50"
        )
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values)]


def _samples(settings: SweepConfig) -> list[dict[str, str]]:
    """The whole grid, else combinations in which every value and both ends of every range are met."""
    if settings.searched_by == "grid":
        return grid_of(settings)
    ends = {
        name: values.values if isinstance(values, Choice) else (written(values.low), written(values.high))
        for name, values in settings.set
    }
    return [
        {name: each[number % len(each)] for name, each in ends.items()}
        for number in range(max(map(len, ends.values())))
    ]


def begin(folder: Path, settings: SweepConfig, base: Loaded, cwd: Path) -> tuple[Request, bool]:
    """Write down what is asked for, or find the same there; whether it goes on.

    Raises:
        UserError: the folder is in use, or holds a sweep with other settings.
    """
    asked = Request(folder, settings, base, cwd)
    if (folder / layout.SWEEP_REQUEST).exists():
        known = _read(folder)
        before, now = known["identity"], asked.identity
        if before != now:
            names = [name for name in now if before.get(name) != now[name] and name != "base"]
            names += [f"{name} of the config" for name in _differing(before["base"], now["base"])]
            raise UserError(
                f"{folder} holds a sweep with other settings: {', '.join(names)}",
                "the same settings to go on with it, or a new folder",
                f"`warmstart sweep {folder}` goes on with it; --output-dir names another folder",
            )
        kept, given = known["execution"]["storage"], settings.shown_storage
        if kept != given:
            raise UserError(
                f"{folder} holds a sweep with the storage {kept or layout.SWEEP_STORAGE}, not {given or 'its own'}",
                "the same storage to go on with it",
                "--output-dir names another folder",
            )
        return asked, True
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output-dir {folder} is in use", "a new or empty folder", "choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    writer.write_text(folder / layout.SWEEP_BASE, config_io.to_yaml(base.config, base.origins))
    execution = settings.model_dump(mode="json", include={*OF_EXECUTION}, exclude={"output_dir"})
    execution["storage"] = settings.shown_storage
    writer.write_json(
        folder / layout.SWEEP_REQUEST,
        {"format": _FORMAT, "identity": asked.identity, "execution": execution, "cwd": str(cwd.absolute())},
    )
    return asked, False


def go_on(folder: Path, changed: dict[str, Any]) -> tuple[SweepConfig, Loaded, Path]:
    """The settings of the sweep in a folder, with what `changed` of them, its base, and where its paths begin.

    Raises:
        UserError: settings that make another sweep of it, or a damaged folder.
    """
    known = _read(folder)
    own = {name: value for name, value in known["identity"].items() if name != "base"}
    others = [name for name in changed if name not in (*OF_EXECUTION, "storage")]
    if others:
        raise UserError(
            f"--{others[0]} with the folder of a sweep, which has its own",
            f"what may change: {', '.join(OF_EXECUTION)}",
            "name the config instead, and a new --output-dir",
        )
    if HIDDEN in (known["execution"]["storage"] or "") and "storage" not in changed:
        raise UserError(
            f"the storage of {folder} has a password, which is not written down",
            known["execution"]["storage"],
            "name it again: --storage URL",
        )
    base = config_io.load({}, str(folder / layout.SWEEP_BASE))
    settings = config_io.validate_section(SweepConfig, {**own, **known["execution"], **changed})
    return settings, base, Path(known["cwd"])


def _read(folder: Path) -> dict[str, Any]:
    file = folder / layout.SWEEP_REQUEST
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        is_whole = content["format"] == _FORMAT and {"identity", "execution", "cwd"} <= content.keys()
    except (ValueError, TypeError, KeyError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError(f"{file} is damaged: it is not the JSON that was written", "the folder of a sweep")
    return content


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{name}"
        for section, values in now.items()
        for name, value in values.items()
        if before.get(section, {}).get(name) != value
    ]
