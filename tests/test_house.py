"""The rules of the house, on the syntax tree: floors, doors, sizes, and no setting that nothing reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import warmstart
from warmstart.config.schema import Config, leaves
from warmstart.data.augment import Augment

SRC = Path(warmstart.__file__).parent
FILES = {".".join(path.relative_to(SRC).with_suffix("").parts): path for path in sorted(SRC.rglob("*.py"))}

# Part -> floor (docs/architecture.md). Imports go down only; parts of one floor do not know each other.
FLOORS = {
    "errors": 0,
    "records": 0,
    "shown": 0,
    "stats": 0,
    "config": 1,
    "console": 1,
    "run": 2,
    "data": 2,
    "models": 2,
    "tasks": 2,
    "adapt": 3,
    "inference": 3,
    "engine": 4,
    "analysis": 5,
    "methods": 6,
    "verify": 6,
    "api": 7,
    "app": 7,
    "arguments": 7,
    "results": 7,
    "cli": 7,
    "commands": 7,
    "flags": 7,
    "flags_use": 7,
    "flags_proofs": 7,
    "demo": 7,
    "verbs": 7,
    "__init__": 7,
    "__main__": 7,
}
TOP = 7  # whose files know each other
VERSION_ONLY = "__version__"  # the one name of the package itself that every floor may ask for

# Third party -> the only files (or folders, with a slash) that may import it.
DOORS = {
    "matplotlib": [
        "analysis/blend_plot.py",
        "analysis/compare/pictures.py",
        "analysis/compression_plot.py",
        "analysis/diagnose/picture.py",
        "analysis/explain/pictures.py",
        "analysis/figures.py",
        "analysis/image_plots.py",
        "analysis/label_plots.py",
        "analysis/mask_plots.py",
        "analysis/overlays.py",
        "analysis/plots.py",
        "analysis/roc_plot.py",
        "analysis/sensitivity_plot.py",
        "analysis/sweep_plot.py",
    ],
    "mpl_toolkits": ["analysis/figures.py"],
    "timm": ["models/", "engine/optimizer.py", "methods/export/answer.py"],
    "torchvision": ["models/", "data/torchvision_sets.py"],
    "tensorboard": ["run/tensorboard.py"],
    "sklearn": ["demo.py", "analysis/explain/projection.py"],
    "umap": ["analysis/explain/projection.py"],
    "segmentation_models_pytorch": ["models/"],
    "transformers": ["models/", "methods/export/answer.py"],
    "bitsandbytes": ["models/adapters/four_bit.py"],
    "onnxruntime": [
        *("inference/onnx_model.py", "methods/export/answer.py"),
        "methods/compress/static_int8.py",
    ],
    "onnx": ["methods/compress/static_int8.py"],
    "onnxscript": ["methods/export/onnx_file.py"],
    "pyarrow": ["inference/predictions.py", "data/tables.py", "data/arrow_files.py"],
    "torch_pruning": ["methods/compress/pruning.py"],
    "torch.distributed": ["engine/distributed.py"],
    "jinja2": ["analysis/report/render.py"],
    "mlflow": ["methods/track.py"],
    "wandb": ["methods/track.py"],
    "optuna": ["methods/sweep/study.py", "methods/sweep/space.py"],
    "sqlalchemy": ["methods/sweep/study.py"],  # whose errors Optuna's storage raises
    "ray": ["methods/sweep/ray_cluster.py"],
    "cyclopts": ["cli.py", "app.py"],
    "rich": ["console.py"],
    "pydantic": ["config/"],
    "yaml": ["config/io.py", "config/prompt_file.py", "run/yaml_text.py"],
}
WITHOUT_TORCH = [
    "config",
    "run",
    "errors",
    "records",
    "stats",
    "console",
    "app",
    "cli",
    "commands",
    "flags",
    "flags_use",
    "flags_proofs",
    "__init__",
    "__main__",
]
WITHOUT_TORCH += [
    "analysis.summary",
    *(f"analysis.compare.{name}" for name in ("models", "recipes", "runs", "answers", "measures", "looks")),
    "api",
    "results",
    "verbs.training",
    "verbs.models",
    "verbs.folders",
    "verbs.reproducing",
    "verbs.advising",
    "verbs.explaining",
    "verbs.exporting",
    "verbs.looking",
    "verbs.diagnosing",
    "verbs.reporting",
    "analysis.diagnose",
    *(f"analysis.report.{name}" for name in ("report", "run_page", "sweep_page", "errors", "render")),
    "verbs.methods",
    "verbs.compressing",
    "verbs.sweeping",
]
TORCHES = {"torch", "torchvision", "timm", "safetensors.torch"}

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_ARGUMENTS = 300, 60, 7
LONGER_FUNCTIONS = {"engine.loop.run_loop": 100}  # the one outer loop; this list grows no further


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(node: ast.AST, deep: bool = True) -> Iterator[str]:
    """Full names of what is imported; `deep` also inside functions, never below `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are written in full"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif deep or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(child, deep)


@cache
def imported(module: str, deep: bool = True) -> tuple[str, ...]:
    return tuple(imports(tree(module), deep))


def own(names: Iterable[str]) -> set[str]:
    """Those of our modules that the names stand for."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "warmstart" or name == f"warmstart.{VERSION_ONLY}":
            continue
        for end in (len(parts), len(parts) - 1):
            module = ".".join(parts[1:end])
            if module in FILES or f"{module}.__init__" in FILES:
                found.add(module if module in FILES else f"{module}.__init__")
                break
        else:
            found.add("__init__")
    return found


def part(module: str) -> str:
    return module.split(".")[0]


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{prefix}.{child.name}", child
                yield from walk(child, f"{prefix}.{child.name}")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}.{child.name}")
            else:
                yield from walk(child, prefix)

    yield from walk(tree(module), module)


def test_every_part_has_a_floor():
    assert {part(module) for module in FILES} <= set(FLOORS)


def test_imports_go_down_only():
    found = []
    for module in FILES:
        mine = FLOORS[part(module)]
        others = {other for other in own(imported(module)) if part(other) != part(module)}
        others = {other for other in others if not mine == FLOORS[part(other)] == TOP}
        found += [f"{module} (floor {mine}) imports {o}" for o in others if FLOORS[part(o)] >= mine]
    assert found == []


def test_parts_hold_no_ring():
    """Inside a part too, nobody imports whoever imports him."""
    graph = {module: own(imported(module, deep=False)) for module in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a ring: {' -> '.join((*above, module))}"
        if module not in done:
            for other in graph[module] - {"__init__"}:
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("package", DOORS)
def test_third_parties_have_one_door(package):
    doors = [SRC / door for door in DOORS[package]]
    for module, path in FILES.items():
        names = [name for name in imported(module) if name == package or name.startswith(f"{package}.")]
        is_door = any(door in (path, *path.parents) for door in doors)
        assert is_door or not names, f"{module} imports {names[0]}"
    assert all(door.exists() for door in doors), "a door that is gone"


def test_torch_distributed_is_behind_its_door():
    """Not by attribute either: `import torch` alone would reach it."""
    for module in FILES:
        assert module == "engine.distributed" or "torch.distributed." not in ast.unparse(tree(module)), module


def needs(module: str) -> tuple[str, ...] | None:
    """The way from a module to torch by imports at the top of files, or None."""
    ways = {module: (module,)}
    for current in (open_ends := [module]):
        names = imported(current, deep=False)
        for name in names:
            if any(name == torch or name.startswith(f"{torch}.") for torch in TORCHES):
                return (*ways[current], name)
        for other in sorted(own(names)):
            packages = {f"{other.rpartition('.')[0]}.__init__"} & set(FILES)
            for step in {other, *packages} - set(ways):
                ways[step] = (*ways[current], step)
                open_ends.append(step)
    return None


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_no_torch_at_the_top(name):
    modules = [module for module in FILES if module == name or module.startswith(f"{name}.")]
    assert modules
    for module in modules:
        way = needs(module)
        assert way is None, " -> ".join(way or ())


def test_run_never_imports_torch_at_all():
    for module in FILES:
        if part(module) in ("run", "config", "errors", "records", "stats", "console"):
            assert not {name.split(".")[0] for name in imported(module)} & TORCHES, module


def test_files_are_small():
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: num for module, num in lines.items() if num > MOST_LINES} == {}


def test_functions_are_small():
    found = []
    for name, function in chain.from_iterable(map(functions, FILES)):
        assert function.end_lineno is not None
        num_lines = function.end_lineno - function.lineno + 1
        if num_lines > LONGER_FUNCTIONS.get(name, MOST_LINES_OF_A_FUNCTION):
            found.append(f"{name}: {num_lines} lines")
        arguments = function.args
        num = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        is_method = bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
        if num - is_method > MOST_ARGUMENTS:
            found.append(f"{name}: {num - is_method} arguments")
    assert found == []


def test_exceptions_from_the_rules_are_in_use():
    names = {name for module in FILES for name, _ in functions(module)}
    assert set(LONGER_FUNCTIONS) <= names


def test_nothing_is_left_for_later():
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [module for module, path in FILES.items() if later.search(path.read_text(encoding="utf-8"))] == []


def test_nothing_is_caught_blindly():
    found = []
    for module in FILES:
        for node in ast.walk(tree(module)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                found.append(f"{module}, line {node.lineno}: a bare except")
                continue
            is_broad = ast.unparse(node.type) in ("Exception", "BaseException")
            told = any(
                isinstance(inner, ast.Raise)
                or (isinstance(inner, ast.Return) and inner.value and ast.unparse(inner.value) == node.name)
                or (
                    isinstance(inner, ast.Call)
                    and ast.unparse(inner).endswith(f".set_exception({node.name})")
                )
                for inner in ast.walk(node)
            )
            if is_broad and not told:
                found.append(
                    f"{module}, line {node.lineno}: everything is caught, nothing raised or handed on"
                )
    assert found == []


def test_every_file_says_what_it_is_for():
    silent = [m for m in FILES if ast.get_docstring(tree(m)) is None and FILES[m].stat().st_size > 0]
    assert silent == []


SECTION_CLASSES = {field.annotation.__name__: name for name, field in Config.model_fields.items()}


@cache
def settings_read() -> dict[str, str]:
    """`section.leaf` -> a module that reads it, as `section.leaf` or from a parameter of the section's class.

    The schema itself, the cross-field rules and the announcement know a setting without obeying it.
    """
    found: dict[str, str] = {}
    for module in FILES:
        if module in ("config.schema", "config.rules", "engine.announce"):
            continue
        for node in ast.walk(tree(module)):
            if not isinstance(node, (ast.FunctionDef, ast.Module)):
                continue
            given = node.args.args + node.args.kwonlyargs if isinstance(node, ast.FunctionDef) else []
            named = {
                arg.arg: SECTION_CLASSES.get(ast.unparse(arg.annotation)) for arg in given if arg.annotation
            }
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load):
                    holder = ast.unparse(inner.value).rpartition(".")[2]
                    found[f"{named.get(holder) or holder}.{inner.attr}"] = module
    return found


# Settings that are read by name in a table, where the syntax tree shows no attribute: leaf -> the file.
READ_BY_NAME = dict.fromkeys(Augment.level("none"), "data.augment")


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.path)
def test_no_setting_is_dead(leaf):
    """The static half: something reads it. That it has an effect is tested where it has it."""
    if leaf.name in READ_BY_NAME:
        reader = READ_BY_NAME[leaf.name]
        words = {node.value for node in ast.walk(tree(reader)) if isinstance(node, ast.Constant)}
        assert leaf.name in words
        assert "getattr" in ast.unparse(tree(reader))
    else:
        assert leaf.path in settings_read(), f"nothing reads {leaf.path}"
