"""Rules for `--mix` and the section `retain`. No torch."""

from __future__ import annotations

from warmstart.config.mix_values import by_path, moved, share_at
from warmstart.config.places import absolute
from warmstart.config.schema import Config
from warmstart.config.tasks_rules import is_multitask
from warmstart.errors import UserError

# What each setting of the section `retain` is read by: without it the setting is dead.
_READERS = {"images": "replay", "ewc_images": "ewc", "temperature": "lwf"}


def source_paths(config: Config) -> tuple[str, ...]:
    """The data sets beside --data, each once: those of other tasks; or those mixed in, then the retained one.

    Of several tasks, what is retained is a run.
    """
    if is_multitask(config):
        return tuple(path for _, path in config.tasks.data)
    retained = () if config.retain.path is None else (config.retain.path,)
    return tuple(dict.fromkeys((*by_path(config.data.mix), *retained)))


def named_paths(config: Config) -> tuple[str, ...]:
    """What must exist beside --data."""
    retained = () if config.retain.path is None else (config.retain.path,)
    return tuple(dict.fromkeys((*source_paths(config), *retained)))


def flag_of(config: Config, path: str) -> str:
    """What names a data set beside --data."""
    if path == config.retain.path:
        return "--retain"
    return "--tasks" if is_multitask(config) else "--mix"


def trained_paths(config: Config) -> tuple[str, ...]:
    """Those whose images are trained on beside --data's, each once."""
    replayed = (config.retain.path,) if config.retain.path is not None and config.retain.replay else ()
    return tuple(dict.fromkeys((*by_path(config.data.mix), *replayed)))


def at_places(config: Config, places: tuple[str, ...]) -> Config:
    """The config with its `source_paths` at the `places` where a run found them."""
    if not places:
        return config
    if is_multitask(config):  # beside its own tasks a run may have opened those of the run of --retain
        named = ((name, place) for (name, _), place in zip(config.tasks.data, places, strict=False))
        return config.model_copy(update={"tasks": config.tasks.model_copy(update={"data": tuple(named)})})
    found = dict(zip(source_paths(config), places, strict=True))
    data = config.data.model_copy(update={"mix": moved(config.data.mix, found)})
    path = config.retain.path
    retain = config.retain.model_copy(update={"path": None if path is None else found[path]})
    return config.model_copy(update={"data": data, "retain": retain})


def total_share(config: Config, epoch: int) -> float:
    """The share of an epoch's places that is not of --data."""
    mixed = sum(share_at(shares, epoch) for shares in by_path(config.data.mix).values())
    return mixed + config.retain.replay


def mix_problems(config: Config) -> list[UserError]:
    return (
        _without_reader(config)
        + _without_effect(config)
        + _too_much(config)
        + _same_data(config)
        + _beside_mine(config)
    )


def _without_effect(config: Config) -> list[UserError]:
    """Shares that no epoch of the run has."""
    mix, epochs = config.data.mix, config.train.epochs
    found = [
        UserError(
            f"--mix {','.join(map(str, shares))}: the run has only {epochs} epochs", "limits within --epochs"
        )
        for shares in by_path(mix).values()
        # A last limit may be the end of the run; where another share follows, that would never come.
        if any((share.until or 0) + (share is not shares[-1]) > epochs for share in shares)
    ]
    found += [
        UserError(
            f"--mix {','.join(map(str, shares))} gives {path} no place in any epoch",
            "a share above 0",
            "leave it out; --retain measures a data set without training on it",
        )
        for path, shares in by_path(mix).items()
        if not any(share.amount for share in shares)
    ]
    return found


def _beside_mine(config: Config) -> list[UserError]:
    if config.data.mine is None or not (config.data.mix or config.retain.replay):
        return []
    return [
        UserError(
            "--mine says how often each image of --data comes, and --mix and --retain.replay give places to others",
            "one of them",
            "leave --mine out",
        )
    ]


def _without_reader(config: Config) -> list[UserError]:
    retain, found = config.retain, []
    for name, field in type(retain).model_fields.items():
        value = getattr(retain, name)
        if retain.path is None and value != field.default:
            found.append(
                UserError(
                    f"--retain.{name.replace('_', '-')} {value:g} without --retain",
                    "the data set that must not be forgotten",
                    "name it with --retain DATA",
                )
            )
    if config.data.mix_classes and not source_paths(config):
        found.append(
            UserError(
                "--mix-classes without --mix and --retain", "data sets whose classes differ", "leave it out"
            )
        )
    return found


def _too_much(config: Config) -> list[UserError]:
    limits = {share.until for share in config.data.mix if share.until is not None}
    for epoch in sorted({0, *limits}):
        total = total_share(config, epoch)
        if total > 1 + 1e-9:
            replay = f" and --retain.replay {config.retain.replay:g}" if config.retain.replay else ""
            return [
                UserError(
                    f"--mix {','.join(map(str, config.data.mix))}{replay}: the shares add up to {total:g} in "
                    f"epoch {epoch}",
                    "at most 1; what is left is of --data",
                )
            ]
    return []


def _same_data(config: Config) -> list[UserError]:
    if config.data.path is None or is_multitask(config):
        return []
    own = absolute(config.data.path)
    return [
        UserError(
            f"{'--retain' if path == config.retain.path else '--mix'} {path} is the data set of --data",
            "another data set: its images would be trained on and measured at once",
            "leave it out; `--data` has the rest of every epoch",
        )
        for path in source_paths(config)
        if absolute(path) == own
    ]


def unread_retain_settings(config: Config) -> dict[str, str]:
    """Setting of the section -> the one that would read it, and is off."""
    return {name: reader for name, reader in _READERS.items() if not getattr(config.retain, reader)}
