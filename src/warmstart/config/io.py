"""YAML and flags to `Config` and back, with the origin of every value."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from warmstart.config import rules
from warmstart.config.schema import MAIN_LEAVES, Config, Leaf, Section, flag_of, leaves
from warmstart.config.yaml_aliases import translate_yaml
from warmstart.errors import UserError, closest, listing

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Loaded:
    """A parsed config: `origins` says for each `section.leaf` that is not a default where it came from.

    `notes` say which names of the founding documents were met, and what they are here.
    """

    config: Config
    origins: dict[str, str]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """Settings by path (`optim.lr`) that come from one place."""

    origin: str
    values: dict[str, Any]
    notes: tuple[str, ...] = ()


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and drops the first without a word; here that is an error."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Nine aliases of nine aliases of ... fill any memory as soon as somebody prints the value."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "anchors and aliases have no use here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a word", key_node.start_mark
                )
            key = key_node.value  # as written: every key of the schema is a word
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load(
    flags: dict[str, Any],
    yaml_path: str | None = None,
    preset: str | None = None,
    parent: Layer | None = None,
    above: Sequence[Layer] = (),
    without: Collection[str] = (),
) -> Loaded:
    """Merge defaults < parent < preset < YAML < above < flags, validate once, and check the cross-field rules.

    `flags` maps flag names (`lr`, `batch_size`, `data`) to values, written or typed; None means not given. `without`
    are paths that a YAML may hold and that are not asked of it.

    Raises:
        UserError: every problem found, all in one message.
    """
    problems: list[UserError] = []
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    layers = [] if parent is None else [parent]
    if preset is not None:
        content = parse_yaml(_preset_text(preset), f"preset {preset}", problems)
        layers.append(flatten(content, f"preset {preset}", problems))
    if yaml_path is not None:
        content = parse_yaml(file_text(yaml_path), str(yaml_path), problems)
        layer = flatten(content, str(yaml_path), problems)
        unsaid = {*without, *(path for path in ("data.path", "model.name") if layer.values.get(path) is None)}
        values = {path: value for path, value in layer.values.items() if path not in unsaid}
        layers.append(replace(layer, values=values))
    layers += above
    for layer in layers:
        for path, value in layer.values.items():
            _put(merged, origins, path, value, layer.origin)
    by_flag = {flag: leaf for leaf in leaves() for flag in (leaf.flag, leaf.flag.replace(".", "-"))}
    for name, value in ((name, value) for name, value in flags.items() if value is not None):
        leaf = by_flag.get(name.replace("_", "-"))
        if leaf is None:
            problems.append(
                UserError(f"unknown setting {name!r}", fix=closest(name.replace("_", "-"), by_flag))
            )
        else:
            _put(merged, origins, leaf.path, value, "flag")
    config = _validate(merged, problems)
    problems += rules.problems(config, origins)
    if problems:
        raise UserError.of_problems(problems, "the settings")
    notes = tuple(note for layer in layers for note in layer.notes)
    return Loaded(config, origins, tuple(rules.warnings(config, origins)), notes)


def from_dict(values: dict[str, Any]) -> Config:
    """A config as it was written by `to_yaml`; used for run directories, so no rule is checked again.

    Raises:
        UserError: it was edited since, or another version of warmstart wrote it.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = listing(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(
            f"the recorded config is not one of this version of warmstart ({found})",
            "the config.yaml that was written with the run",
            "undo what was changed in it",
        ) from None


def validate_section(section: type[S], values: dict[str, Any]) -> S:
    """One section alone, for verbs that take some of its settings.

    Raises:
        UserError: values of a wrong type or range.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        found = [
            UserError(
                f"--{flag_of(section, e['loc'][0])}: {e['msg'].removeprefix('Value error, ')}, got {e['input']!r}"
            )
            for e in error.errors()
        ]
        raise UserError.of_problems(found, "the settings") from None


def to_yaml(config: Config, origins: dict[str, str]) -> str:
    """Every value in force, reloadable; a comment names the origin of those that are not defaults."""
    lines = ["# Every setting in force. Reload with: warmstart finetune --config THIS_FILE"]
    dumped = config.model_dump(mode="json")
    section = ""
    for leaf in leaves():
        if leaf.section != section:
            section = leaf.section
            lines.append(f"{section}:")
        comment = f"  # {origins[leaf.path]}" if leaf.path in origins else ""
        lines.append(f"  {leaf.name}: {scalar(dumped[leaf.section][leaf.name])}{comment}")
    return "\n".join(lines) + "\n"


def template(values: dict[str, Any]) -> str:
    """A commented YAML to start from: `values` (path -> value) are set, the rest stands as comments."""
    lines = ["# warmstart settings. The lines with '#' show the defaults; remove the '#' to change one."]
    dumped = Config().model_dump(mode="json")
    section = ""
    for leaf in leaves():
        if leaf.section != section:
            section = leaf.section
            lines += ["", f"{section}:"]
        value = values.get(leaf.path, dumped[leaf.section][leaf.name])
        # After the indentation, so that the line stands right whether or not an editor adds a space.
        mark = "" if leaf.path in values else "#"
        lines.append(f"  {mark}{leaf.name}: {scalar(value)}  # {leaf.description}")
    return "\n".join(lines) + "\n"


def preset_names() -> list[str]:
    folder = resources.files("warmstart.config") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def scalar(value: Any) -> str:
    # Flow style keeps every leaf on one line; width so large that nothing is folded.
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def _preset_text(name: str) -> str:
    file = resources.files("warmstart.config") / "presets" / f"{name}.yaml"
    if not file.is_file():
        names = preset_names()
        raise UserError(f"there is no preset {name!r}", f"one of {listing(names)}", closest(name, names))
    return file.read_text(encoding="utf-8")


def file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read the config {path}: {reason}", "a YAML file", "check its path") from None


def parse_yaml(text: str, origin: str, problems: list[UserError]) -> dict[str, Any]:
    """The sections of a YAML text; whatever is wrong with it joins the `problems`."""
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.append(UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}"))
        return {}
    if isinstance(content, dict):
        return content
    if content is not None:
        found = f"{origin} holds a {type(content).__name__}"
        problems.append(UserError(found, "sections such as data:, model:"))
    return {}


def flatten(content: dict[str, Any], origin: str, problems: list[UserError]) -> Layer:
    """Settings by path, with the founding documents' names translated; unknown ones join the `problems`."""
    known = {leaf.path: leaf for leaf in leaves()}
    content, flat, notes = translate_yaml(content, origin, problems)
    for section, body in content.items():
        if section not in Config.model_fields:
            problems.append(_unknown_section(str(section), origin, known))
        elif isinstance(body, dict):
            for name, value in body.items():
                path = f"{section}.{name}"
                if path in flat:
                    problems.append(UserError(f"{origin}: {path} is given twice, once by a document's name"))
                elif path in known:
                    flat[path] = value
                else:
                    problems.append(_unknown_key(path, origin, known))
        elif body is not None and section in MAIN_LEAVES:
            flat[f"{section}.{MAIN_LEAVES[section]}"] = body  # `data: PATH` is short for `data: {path: PATH}`
        elif body is not None:
            problems.append(UserError(f"{origin}: {section} is {body!r}", f"keys below {section}:"))
    for path in flat.keys() - known.keys():
        problems.append(_unknown_key(path, origin, known))
    return Layer(origin, {path: value for path, value in flat.items() if path in known}, notes)


def _unknown_section(name: str, origin: str, known: dict[str, Leaf]) -> UserError:
    homes = [leaf.path for leaf in known.values() if leaf.name == name]
    if homes:
        return UserError(f"{origin}: {name!r} stands at the top level", f"it belongs to {homes[0]}")
    hint = closest(name, Config.model_fields) or closest(name, [leaf.name for leaf in known.values()])
    return UserError(f"{origin}: unknown key {name!r}", f"sections {listing(Config.model_fields)}", hint)


def _unknown_key(path: str, origin: str, known: dict[str, Leaf]) -> UserError:
    section, name = path.split(".", 1)
    elsewhere = [leaf.path for leaf in known.values() if leaf.name == name]
    if elsewhere:
        return UserError(f"{origin}: unknown key {path!r}", fix=f"it is called {elsewhere[0]!r}")
    same = [leaf.name for leaf in known.values() if leaf.section == section]
    hint = closest(name, same) or closest(name, [leaf.name for leaf in known.values()])
    return UserError(f"{origin}: unknown key {path!r}", f"in {section}: {listing(same, 20)}", hint)


def _put(
    merged: dict[str, dict[str, Any]], origins: dict[str, str], path: str, value: Any, origin: str
) -> None:
    section, name = path.split(".", 1)
    merged.setdefault(section, {})[name] = value
    origins[path] = origin


def _validate(merged: dict[str, dict[str, Any]], problems: list[UserError]) -> Config:
    """The config of the valid values; each invalid one becomes a problem and falls back to its default."""
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        flags = {leaf.path: leaf.flag for leaf in leaves()}
        kept = {section: dict(values) for section, values in merged.items()}
        for path, detail in {".".join(map(str, e["loc"][:2])): e for e in error.errors()}.items():
            section, name = path.split(".", 1)
            given = merged[section][name]
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(
                UserError(f"--{flags[path]} ({path}): {message}, got {given!r}", fix=_near(detail, given))
            )
            kept[section].pop(name, None)
        return Config.model_validate(kept)


def _near(detail: Any, given: Any) -> str:
    expected = detail.get("ctx", {}).get("expected")
    if detail["type"] != "literal_error" or not expected:
        return ""
    return closest(str(given), str(expected).replace("'", "").replace(" or ", ", ").split(", "))
