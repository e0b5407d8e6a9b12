"""A settings file that a command proposes: some of the leaves, with the reason above each."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from warmstart.config.io import scalar
from warmstart.config.schema import Config, leaves
from warmstart.errors import UserError

_WIDTH = 116


def check_new_file(flag: str, target: str) -> None:
    """UserError for a file that exists, or a folder that does not."""
    if Path(target).exists() or not Path(target).parent.is_dir():
        what = "exists already" if Path(target).exists() else "lies in a folder that does not exist"
        raise UserError(
            f"{flag} {target} {what}", "a new file in a folder that exists", f"choose another {flag}"
        )


def settings_lines(config: Config, reasons: Mapping[str, str]) -> list[str]:
    """YAML of the leaves (by path) that have a reason, by section; an empty one is left out."""
    dumped, lines, section = config.model_dump(mode="json"), list[str](), ""
    for leaf in (leaf for leaf in leaves() if leaf.path in reasons):
        if leaf.section != section:
            section = leaf.section
            lines.append(f"{section}:")
        lines += comment(reasons[leaf.path], "  # ")
        lines.append(f"  {leaf.name}: {scalar(dumped[leaf.section][leaf.name])}")
    return lines


def comment(text: str, mark: str = "# ") -> list[str]:
    """The lines of `text`, each behind the mark."""
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark, break_on_hyphens=False)
