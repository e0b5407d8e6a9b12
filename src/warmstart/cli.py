"""The command line: one command per verb, flags from the schema, no logic.

Exit codes: 0 done; 1 a fault of warmstart itself; 2 something the user can mend; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from warmstart import __version__
from warmstart.app import build_app
from warmstart.commands import COMMANDS, Command
from warmstart.config import aliases
from warmstart.errors import Interrupted, ReportedElsewhere, UserError, closest, listing
from warmstart.records import finite


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(tokens)
    except ReportedElsewhere:
        return 2
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        print(f"{'' if rank == '0' else f'process {rank}: '}error: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        print("error: interrupted; whatever was written before is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `warmstart show RUN | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path or a disk that the system refuses
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(tokens: list[str]) -> int:
    if not tokens or tokens[0] in ("-h", "--help"):
        build_app(None)(["--help"])
        return 0
    if tokens[0] in ("--version", "-V"):
        print(f"warmstart {__version__}")
        return 0
    name, *rest = tokens
    command = COMMANDS.get(name)
    if command is None:
        raise UserError(
            f"there is no command {name!r}", f"one of {', '.join(COMMANDS)}", closest(name, COMMANDS)
        )
    if "--help-all" in rest:
        build_app(name)([name, "--help"])
        _print_aliases(name)
        return 0
    if "--help" in rest or "-h" in rest:
        build_app(name, with_rare=False)([name, "--help"])
        num_rare = sum(flag.is_rare for flag in command.flags())
        if num_rare:
            print(f"{num_rare} more settings: warmstart {name} --help-all")
        return 0
    rest, notes = aliases.translate(name, rest)
    _check_flags(command, rest)
    for note in notes:
        print(f"alias: {note}", file=sys.stderr)
    values = _parse(name, rest)
    _check_values(values)
    as_json = bool(values.pop("json", False))
    is_first = os.environ.get("RANK", "0") == "0"
    if not is_first and not command.in_processes:
        return 0
    result = command.call(**{key: value for key, value in values.items() if value is not None})
    if not is_first:
        return 0
    text = _json_text(command.to_json(result)) if as_json else command.to_text(result)
    # A terminal or a pipe that lacks a character of a class's or file's name still gets all the rest.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    return command.exit_code(result)


def _json_text(value: Any) -> str:
    """Plain JSON in ASCII: what is not a number (NaN, infinity) is null."""
    return json.dumps(finite(value), allow_nan=False)


def _parse(name: str, tokens: list[str]) -> dict[str, Any]:
    """The values given on the command line; cyclopts does the parsing, its errors become ours."""
    from cyclopts import CycloptsError, UnusedCliTokensError

    caught: dict[str, Any] = {}
    app = build_app(name, receive=caught.update)
    try:
        app([name, *tokens], exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        raise UserError(
            f"{name} has no use for {listing(map(repr, error.unused_tokens or ()))}",
            "every value behind its flag",
            f"`warmstart {name} --help` lists the flags",
        ) from None
    except CycloptsError as error:
        raise UserError(
            " ".join(str(error).split()), fix=f"`warmstart {name} --help` lists the flags"
        ) from None
    return caught


def _check_flags(command: Command, tokens: Sequence[str]) -> None:
    """Every unknown flag and every flag given twice, in one message (the parser stops at the first)."""
    known = command.flag_names()
    repeatable = {flag.name.replace("_", "-") for flag in command.flags() if flag.kind is list}
    problems = []
    seen: set[str] = set()
    for token in tokens:
        if not token.startswith("--") or len(token) == 2:
            continue
        flag = token[2:].partition("=")[0].replace("_", "-")
        if flag not in known:
            hint = closest(f"--{flag}", [f"--{name}" for name in known])
            problems.append(UserError(f"unknown flag --{flag}", fix=hint))
        elif flag in seen and flag not in repeatable:
            problems.append(UserError(f"--{flag} is given twice", "one value for one setting"))
        seen.add(flag)
    if problems:
        raise UserError.of_problems(problems, "the command line")


def _check_values(values: dict[str, Any]) -> None:
    """An empty value is a shell variable that was not set; as a path it would mean the current folder."""
    problems = [
        UserError(f"--{name.replace('_', '-')} is empty", "a value, or leave the flag out")
        for name, value in values.items()
        if value == "" or (isinstance(value, list) and "" in value)
    ]
    if problems:
        raise UserError.of_problems(problems, "the command line")


def _print_aliases(name: str) -> None:
    table = aliases.ALIASES.get(name, {})
    if table:
        print("Names of the founding documents that are understood too:")
    for flag, alias in sorted(table.items()):
        becomes = " ".join(alias.becomes("VALUE")) or f"no effect: {alias.why}"
        print(f"  --{flag:<30} {becomes}")


if __name__ == "__main__":
    sys.exit(main())
