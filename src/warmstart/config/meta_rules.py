"""Rules for the section `meta`. No torch."""

from __future__ import annotations

from warmstart.config.meta_section import MetaConfig
from warmstart.config.schema import Config, leaves
from warmstart.errors import UserError

# Settings that say how single images come or count; an episode says that itself. Any other value than the one here
# (by which nothing is asked for) is refused.
_REFUSED = {
    "data.mix": (),
    "data.mine": None,
    "data.sampler": "shuffle",
    "data.mixup": None,
    "data.cutmix": None,
    "data.label_columns": (),
    "retain.path": None,
    "distill.teacher": (),
    "task.class_weights": None,
    "task.positive": None,
    "task.threshold": None,
    "adapt.unfreeze": (),
    "train.compile": False,
    "train.gradient_checkpointing": False,
    "output.output_style": "warmstart",
    "output.save_as": None,
}
_UNREAD = ("data.batch_size", "data.eval_batch_size", "data.train_ratio", "data.val_ratio", "data.group")
_INNER = ("inner_steps", "inner_lr", "second_order")


def meta_problems(config: Config) -> list[UserError]:
    """What has no place in episodes, and episodes that contradict themselves."""
    meta = config.meta
    if not meta.is_on:
        return []
    flags = {leaf.path: leaf.flag for leaf in leaves()}
    found = []
    for path, neutral in _REFUSED.items():
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        if value not in (neutral, 0) and value is not None:
            found.append(
                UserError(
                    f"--{flags[path]} has no place in episodes (--meta {meta.method})",
                    f"--{flags[path]} left as it is by default",
                    "use it when you fine-tune from what was learned",
                )
            )
    if config.task.margin_method not in ("auto", "none"):
        found.append(
            UserError(
                f"--margin-method {config.task.margin_method} has no place in episodes (--meta {meta.method})",
                "--margin-method none",
            )
        )
    if config.train.precision == "fp16":
        found.append(
            UserError(
                "--precision fp16: the gradients within an episode would underflow, as they are not scaled",
                "--precision bf16 or float32",
            )
        )
    return found + _same_class_twice(meta)


def _same_class_twice(meta: MetaConfig) -> list[UserError]:
    both = set(meta.val_classes) & set(meta.test_classes)
    if _is_number(meta.val_classes) or _is_number(meta.test_classes) or not both:
        return []
    return [
        UserError(
            f"--meta.val-classes and --meta.test-classes both name {sorted(both)[0]!r}",
            "a class in one of them: what chooses the best step does not measure it",
        )
    ]


def _is_number(names: tuple[str, ...]) -> bool:
    return len(names) == 1 and names[0].isdigit()


def num_held_out(names: tuple[str, ...], meta: MetaConfig) -> int | None:
    """How many classes are asked for; None where they are named."""
    if not names:
        return meta.way
    return int(names[0]) if _is_number(names) else None


def unread_meta_settings(config: Config) -> dict[str, str]:
    """Setting -> why nothing reads it."""
    meta = config.meta
    if not meta.is_on:
        return {f"meta.{name}": "without --meta" for name in MetaConfig.model_fields if name != "method"}
    unread = dict.fromkeys(
        _UNREAD, f"with --meta {meta.method}: an episode is the batch, and classes are held out"
    )
    for name in _INNER:
        if not meta.adapts or (name == "second_order" and meta.method == "reptile"):
            unread[f"meta.{name}"] = f"with --meta {meta.method}"
    if meta.method != "protonet":
        unread["meta.temperature"] = f"with --meta {meta.method}"
    return unread
