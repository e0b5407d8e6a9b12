"""Write the reference pages from the schema and the commands: python docs/generate.py (a test keeps them up to date).

docs/settings.md, docs/commands.md and the rules in docs/advise.md, and the same in docs/zh/ with the words of
docs/zh/reference.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from warmstart.commands import COMMANDS, Command, Flag
from warmstart.config import aliases
from warmstart.config.io import preset_names
from warmstart.config.schema import MAIN_LEAVES, Config, leaves
from warmstart.config.yaml_aliases import SWITCHES, YAML_KEYS
from warmstart.methods.advise_rules import METHODS, RULES, Rule

DOCS = Path(__file__).parent
RULES_BEGIN, RULES_END = "<!-- rules: made by docs/generate.py -->", "<!-- end of rules -->"
OWN_GROUPS = ("Options", "For files that do not say it themselves")  # flags that are no settings

FRAME = {
    "en": {
        "settings_title": "Settings",
        "made": "Made by `docs/generate.py`; do not edit.",
        "settings_intro": "Flags and YAML keys are the same settings: `--lr 5e-4` is `optim: {lr: 5e-4}`; `_` and `-` "
        "are the same. Defaults < `--preset` < `--config` < flags. Presets: {presets}.",
        "settings_head": ("flag", "YAML", "default", "meaning"),
        "short": "`{section}: VALUE` is short for `{section}: {{{leaf}: VALUE}}`.",
        "aliases": "Names of the founding documents",
        "aliases_intro": "Understood, and printed with what they became.",
        "aliases_head": ("flag", "is"),
        "yaml_title": "Keys of YAML files",
        "yaml_intro": "Of documents 002 and 004, whose files are read as they are.",
        "yaml_head": ("key", "is"),
        "switch": "switches the keys beside it on or off",
        "accelerator": "`--device cpu` where the system has that accelerator, else nothing",
        "nothing": "nothing: {why}",
        "commands_title": "Commands",
        "commands_intro": "`warmstart COMMAND --help` says the same in a terminal. Words in capitals are positional.",
        "commands_head": ("flag", "meaning"),
        "required": "required",
        "and_settings": "And all [settings](settings.md).",
        "rules_head": ("rule", "row", "sets", "why"),
        "computed": "by the facts",
    },
    "zh": {
        "settings_title": "设置",
        "made": "由 `docs/generate.py` 生成，请勿手工修改。",
        "settings_intro": "命令行参数与 YAML 键是同一套设置：`--lr 5e-4` 就是 `optim: {lr: 5e-4}`；`_` 与 `-` 等价。"
        "优先级：默认值 < `--preset` < `--config` < 命令行参数。预设：{presets}。",
        "settings_head": ("参数", "YAML", "默认值", "说明"),
        "short": "`{section}: VALUE` 是 `{section}: {{{leaf}: VALUE}}` 的简写。",
        "aliases": "五份原始文档中的参数名",
        "aliases_intro": "都能识别，并打印对应的现用参数。",
        "aliases_head": ("参数", "对应"),
        "yaml_title": "YAML 文件的键",
        "yaml_intro": "来自文档 002 和 004，其配置文件无需修改即可读取。",
        "yaml_head": ("键", "对应"),
        "switch": "打开或关闭同级的键",
        "accelerator": "系统有该加速器时为 `--device cpu`，否则无作用",
        "nothing": "无作用：{why}",
        "commands_title": "命令",
        "commands_intro": "在终端中用 `warmstart COMMAND --help` 可看到同样的内容。大写的词是位置参数。",
        "commands_head": ("参数", "说明"),
        "required": "必需",
        "and_settings": "以及全部[设置](settings.md)。",
        "rules_head": ("规则", "条目", "设置", "理由"),
        "computed": "由事实算出",
    },
}


def words() -> dict[str, dict[str, str]]:
    """The Chinese texts: `settings`, `sections`, `commands`, `flags`, `aliases` and `yaml_keys`, by name."""
    return yaml.safe_load((DOCS / "zh" / "reference.yaml").read_text(encoding="utf-8"))


def english() -> dict[str, dict[str, str]]:
    """The same texts in English, from the source; a flag has one entry for each text that it has."""
    flags: dict[str, str] = {}
    for name, command in COMMANDS.items():
        for flag in own_flags(command):
            shared = flags.setdefault(flag.name, flag.help)
            if shared != flag.help:
                flags[f"{name}.{flag.name}"] = flag.help
    dead = {
        name: alias.why
        for table in aliases.ALIASES.values()
        for name, alias in table.items()
        if name not in ("no-cuda", "no-mps") and not alias.becomes("VALUE")
    }
    return {
        "rules": {rule.id: rule.reason for rule in RULES},
        "settings": {leaf.path: leaf.description for leaf in leaves()},
        "sections": {name: str(field.annotation.__doc__) for name, field in Config.model_fields.items()},
        "commands": {name: command.help for name, command in COMMANDS.items()},
        "flags": flags,
        "aliases": dead,
        "yaml_keys": {name: key.why for name, key in YAML_KEYS.items() if key.why},
    }


def own_flags(command: Command) -> Iterator[Flag]:
    """The flags of a command that are not settings of the schema."""
    return (flag for flag in command.flags() if flag.group in OWN_GROUPS)


def texts(language: str) -> dict[str, dict[str, str]]:
    """Chinese where there is a word for it: a text that still lacks one stands in English until the test is heard."""
    source = english()
    if language == "en":
        return source
    translated = words()
    return {kind: {**known, **translated.get(kind, {})} for kind, known in source.items()}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [("| " + " | ".join(head) + " |"), "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]


def settings_page(language: str = "en") -> str:
    frame: dict[str, Any] = FRAME[language]
    said = texts(language)
    presets = ", ".join(f"`{name}`" for name in preset_names())
    lines = [f"# {frame['settings_title']}", "", frame["made"], ""]
    lines += [frame["settings_intro"].replace("{presets}", presets)]
    for section in Config.model_fields:
        rows = [
            (
                f"`--{leaf.flag}`",
                f"`{leaf.path}`",
                "-" if leaf.default is None or leaf.default == () else str(leaf.default),
                said["settings"][leaf.path],
            )
            for leaf in leaves()
            if leaf.section == section
        ]
        lines += [
            "",
            f"## {section}",
            "",
            said["sections"][section],
            "",
            *table(frame["settings_head"], rows),
        ]
        if section in MAIN_LEAVES:
            lines += ["", frame["short"].format(section=section, leaf=MAIN_LEAVES[section])]
    lines += ["", f"## {frame['aliases']}", "", frame["aliases_intro"]]
    for command, names in aliases.ALIASES.items():
        rows = [(f"`--{name}`", _becomes(name, alias, said, frame)) for name, alias in names.items()]
        lines += ["", f"### {command}", "", *table(frame["aliases_head"], rows)]
    lines += ["", f"### {frame['yaml_title']}", "", frame["yaml_intro"], ""]
    lines += table(frame["yaml_head"], _yaml_rows(said["yaml_keys"], frame))
    return "\n".join(lines) + "\n"


def _yaml_rows(said: dict[str, str], frame: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [(f"`{name}`", frame["switch"]) for name in SWITCHES]
    for name, key in YAML_KEYS.items():
        why = said.get(name, "")
        is_called = f"`{key.path}`" + (f" ({why})" if why else "")
        rows.append((f"`{name}`", is_called if key.path else frame["nothing"].format(why=why)))
    return sorted(rows)


def _becomes(name: str, alias: aliases.Alias, said: dict[str, dict[str, str]], frame: dict[str, Any]) -> str:
    if name in ("no-cuda", "no-mps"):
        return frame["accelerator"]
    tokens = alias.becomes("VALUE")
    return f"`{' '.join(tokens)}`" if tokens else frame["nothing"].format(why=said["aliases"][name])


def commands_page(language: str = "en") -> str:
    frame: dict[str, Any] = FRAME[language]
    said = texts(language)
    lines = [f"# {frame['commands_title']}", "", frame["made"], "", frame["commands_intro"]]
    for name, command in COMMANDS.items():
        flags = list(own_flags(command))
        places = " ".join(
            flag.name.upper() + ("..." if flag.kind is list else "") for flag in flags if flag.positional
        )
        rows = []
        for flag in flags:
            shown = flag.name.upper() if flag.positional else f"--{flag.name.replace('_', '-')}"
            meaning = said["flags"].get(f"{name}.{flag.name}", said["flags"][flag.name])
            is_needed = f" ({frame['required']})" if flag.required else ""
            rows.append((f"`{shown}`", meaning + is_needed))
        lines += ["", f"## {name}", "", said["commands"][name], ""]
        lines += ["```text", f"warmstart {name} {places}".rstrip(), "```", ""]
        lines += table(frame["commands_head"], rows)
        if len(flags) < len(command.flags()):
            lines += ["", frame["and_settings"]]
    return "\n".join(lines) + "\n"


def rules_table(language: str = "en") -> str:
    """The rules of `warmstart advise` in their order: of each slot the first that applies is taken."""
    frame: dict[str, Any] = FRAME[language]
    said = texts(language)["rules"]
    rows = [(f"`{rule.id}`", rule.row, _sets(rule, frame["computed"]), said[rule.id]) for rule in RULES]
    return "\n".join(table(frame["rules_head"], rows))


def _sets(rule: Rule, computed: str) -> str:
    """A method with the settings that it stands for."""
    found = {name: computed if callable(value) else value for name, value in rule.sets.items()}
    if (method := found.get("method")) in METHODS:
        found |= METHODS[method]
    return ", ".join(f"`{name}` {value}" for name, value in found.items()) or "-"


def with_rules(page: Path, language: str) -> str:
    """The page with the table between its two marks made anew."""
    before, _, rest = page.read_text(encoding="utf-8").partition(RULES_BEGIN)
    _, _, after = rest.partition(RULES_END)
    return f"{before}{RULES_BEGIN}\n\n{rules_table(language)}\n\n{RULES_END}{after}"


def pages() -> dict[Path, str]:
    """Every generated page by its path."""
    return {
        DOCS / "settings.md": settings_page("en"),
        DOCS / "commands.md": commands_page("en"),
        DOCS / "advise.md": with_rules(DOCS / "advise.md", "en"),
        DOCS / "zh" / "advise.md": with_rules(DOCS / "zh" / "advise.md", "zh"),
        DOCS / "zh" / "settings.md": settings_page("zh"),
        DOCS / "zh" / "commands.md": commands_page("zh"),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
