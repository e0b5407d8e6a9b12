"""Write docs/settings.md from the schema: python docs/generate.py (a test keeps it up to date)."""

from __future__ import annotations

from pathlib import Path

from warmstart.config import aliases
from warmstart.config.io import preset_names
from warmstart.config.schema import MAIN_LEAVES, Config, leaves

TARGET = Path(__file__).parent / "settings.md"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Made from the schema by `docs/generate.py`; do not edit. Flags and YAML keys are the same settings:",
        "`--lr 5e-4` is `optim: {lr: 5e-4}`; `_` and `-` are the same. Defaults < `--preset` < `--config` <",
        f"flags. Presets: {', '.join(f'`{name}`' for name in preset_names())}.",
    ]
    for section, field in Config.model_fields.items():
        lines += ["", f"## {section}", "", str(field.annotation.__doc__), ""]
        lines += ["| flag | YAML | default | meaning |", "|---|---|---|---|"]
        for leaf in leaves():
            if leaf.section == section:
                default = "-" if leaf.default is None or leaf.default == () else str(leaf.default)
                meaning = leaf.description.replace("|", "\\|")
                lines.append(f"| `--{leaf.flag}` | `{leaf.path}` | {default} | {meaning} |")
        if section in MAIN_LEAVES:
            lines += ["", f"`{section}: VALUE` is short for `{section}: {{{MAIN_LEAVES[section]}: VALUE}}`."]
    lines += ["", "## Names of the founding documents", "", "Understood, and printed with what they became."]
    for command, table in aliases.ALIASES.items():
        lines += ["", f"### {command}", "", "| flag | is |", "|---|---|"]
        for name, alias in table.items():
            if name in ("no-cuda", "no-mps"):
                becomes = "`--device cpu` where the system has that accelerator, else nothing"
            else:
                becomes = (
                    f"`{' '.join(alias.becomes('VALUE'))}`"
                    if alias.becomes("VALUE")
                    else f"nothing: {alias.why}"
                )
            lines.append(f"| `--{name}` | {becomes} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(settings_page(), encoding="utf-8")
