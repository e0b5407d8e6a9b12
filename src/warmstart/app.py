"""The parser of the command line: commands and flags as functions with signatures, which cyclopts reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from warmstart.commands import COMMANDS, Command
from warmstart.flags import Flag


def build_app(command: str | None, receive: Callable[..., Any] | None = None, with_rare: bool = True) -> Any:
    """A cyclopts app that knows all commands by name, and the flags of `command` alone (None: of none).

    Building every signature would cost more than half a second; one is enough to parse one line.
    """
    from cyclopts import App

    app = App(
        name="warmstart",
        help="Make a better vision model from a trained one, and prove what changed.",
        version_flags=[],
        help_format="plaintext",
        help_epilogue="Exit codes: 0 done, 1 a fault of warmstart, 2 something you can mend, 130 interrupted.",
        result_action="return_value",
    )
    for name, entry in COMMANDS.items():
        known = entry.flags() if name == command or command == "*" else ()
        flags = [flag for flag in known if with_rare or not flag.is_rare]
        app.command(_function(entry, flags, receive), name=name, help=entry.help)
    return app


def _function(
    entry: Command, flags: Iterable[Flag], receive: Callable[..., Any] | None
) -> Callable[..., Any]:
    """A function whose signature is the command's flags; called, it hands over what was given."""
    from cyclopts import Group, Parameter
    from cyclopts.validators import Number

    parameters, annotations = [], {}
    groups: dict[str, Any] = {}
    for flag in flags:
        group = groups.setdefault(flag.group, Group(flag.group, sort_key=len(groups)))
        kind: Any = list[str] if flag.kind is list else flag.kind
        options: dict[str, Any] = {"help": flag.help, "group": group, "show_default": False}
        if flag.kind is list:
            options["consume_multiple"] = True
            options["negative_iterable"] = ()
        if flag.kind is int:
            options["validator"] = Number(gte=flag.least)
        if flag.name in ("json", "dry_run"):
            options["negative"] = ()  # `--no-json` would say nothing
        name = flag.name.replace(".", "_")
        if name != flag.name:
            options["name"] = f"--{flag.name.replace('_', '-')}"
        annotation: Any = Annotated[kind if flag.required else kind | None, Parameter(**options)]
        place = inspect.Parameter.POSITIONAL_OR_KEYWORD if flag.positional else inspect.Parameter.KEYWORD_ONLY
        default = inspect.Parameter.empty if flag.required else None
        parameters.append(inspect.Parameter(name, place, default=default, annotation=annotation))
        annotations[name] = annotation

    def run(*args: Any, **values: Any) -> None:
        given = dict(zip([p.name for p in parameters], args, strict=False)) | values
        if receive is not None:
            receive(given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = annotations
    run.__doc__ = entry.help
    return run
