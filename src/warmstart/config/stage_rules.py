"""Cross-field rules of freezing in stages. What names no block of the model, only the plan can tell."""

from __future__ import annotations

from warmstart.config.schema import SELECTION_METRICS, Config
from warmstart.config.unfreezing import PLATEAU, Trigger
from warmstart.errors import UserError, closest, listing


def stage_problems(config: Config) -> list[UserError]:
    """Stages that contradict each other, the run's length, or what can be measured."""
    adapt, train, found = config.adapt, config.train, []
    if adapt.freeze and adapt.unfreeze:
        found.append(
            UserError(
                "--freeze and --unfreeze both say what is frozen at the start",
                fix="--unfreeze alone is enough: blocks that it does not name yet are frozen",
            )
        )
    found += [
        UserError(f"--lrs: the rate of {name!r} is {rate:g}", "above 0")
        for name, rate in adapt.lrs
        if rate <= 0
    ]
    limits = {"epochs": (train.epochs, "--epochs"), "steps": (train.max_steps, "--max-steps")}
    for entry in adapt.unfreeze:
        limit, flag = limits.get(entry.trigger.kind, (None, ""))
        if limit is not None and entry.trigger.value >= limit:
            unit = entry.trigger.kind
            found.append(
                UserError(f"--unfreeze {entry}: the run has only {limit} {unit}", f"{unit} below {flag}")
            )
        if entry.trigger.kind == "metric":
            found += _metric_problems(entry.trigger)
    for kind in ("epochs", "steps"):
        values = [entry.trigger.value for entry in adapt.unfreeze if entry.trigger.kind == kind]
        if values != sorted(values):
            found.append(
                UserError(
                    f"--unfreeze: the stages at {listing(f'{value:g}' for value in values)} {kind} stand out of order",
                    "stages in the order in which they begin",
                )
            )
    return found


def _metric_problems(trigger: Trigger) -> list[UserError]:
    """Of a metric: its name, and whether it can get there."""
    name, direction = trigger.metric, SELECTION_METRICS.get(trigger.metric)
    if direction is None:
        known = listing(SELECTION_METRICS)
        return [
            UserError(
                f"--unfreeze {trigger}: no metric is called {name!r}", known, closest(name, SELECTION_METRICS)
            )
        ]
    wanted = ">=" if direction > 0 else "<="
    if trigger.sign != wanted:
        better = "more" if direction > 0 else "less"
        return [
            UserError(
                f"--unfreeze {trigger} would begin where {name} is bad: {better} of it is better",
                f"{name}{wanted}{trigger.value:g}",
            )
        ]
    if (name != "loss" and trigger.value > 1) or trigger.value < 0:
        return [UserError(f"--unfreeze {trigger}: {name} is never there", "a share such as .80")]
    return []


def unread_stage_settings(config: Config) -> dict[str, str]:
    """Path of a setting -> why nothing reads it."""
    adapt, found = config.adapt, {}
    if sum(not entry.trigger.is_start for entry in adapt.unfreeze) == 0:
        found["optim.stage_warmup"] = "without a later stage of --unfreeze"
    if adapt.layer_decay == 1:
        found["adapt.layer_decay"] = "at 1"
    return found


def waits_for_plateau(config: Config) -> bool:
    return any(entry.trigger.kind == PLATEAU for entry in config.adapt.unfreeze)


def stage_warnings(config: Config) -> list[str]:
    """Stages that early stopping cannot let begin."""
    patience, needed = config.train.patience, config.optim.scheduler_patience
    if waits_for_plateau(config) and patience is not None and patience <= needed:
        return [
            f"--patience {patience} may end the run before --unfreeze plateau begins a stage, "
            f"which takes {needed + 1} validations without a lower val loss (--scheduler-patience {needed})"
        ]
    return []
