"""The folder of a compression: where it lies, what was asked for in it, and whether another one is there."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from warmstart.config.compress_section import CompressConfig
from warmstart.config.places import absolute
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.inference.reference import resolve_weights
from warmstart.methods.compress.rounds import ROUNDS
from warmstart.run import layout, writer

# What a method needs beside warmstart: the extra, and its packages.
_ONNX = "onnx", ("onnx", "onnxruntime", "onnxscript")
_NEEDED = {"prune": ("compress", ("torch_pruning",)), "int8": _ONNX, "qat": _ONNX}
_DONE = re.compile(r"(?!00)\d\d(\.json)?")  # a round that was measured, or whose recovery began


def folder_of(reference: str, settings: CompressConfig) -> Path:
    """As told, else MODEL-METHOD beside the model, or the next free number."""
    if settings.output_dir is not None:
        return Path(settings.output_dir)
    found = resolve_weights(reference)
    model = Path(reference) if found.run is None else found.run.path
    first = model.with_name(f"{model.stem if model.is_file() else model.name}-{settings.method}")
    others = (first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))
    return next(path for path in (first, *others) if not path.exists())


def check_packages(method: str) -> None:
    """Before anything is spent: a graph is made last. UserError: packages that are not installed."""
    extra, packages = _NEEDED.get(method, ("", ()))
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(
            f"--method {method} needs {', '.join(missing).replace('_', '-')}, which is not installed",
            "the extra's packages",
            f"pip install 'warmstart[{extra}]'",
        )


def _asked(reference: str, settings: CompressConfig) -> dict[str, Any]:
    """What must be the same to go on: where it computes is not."""
    values = settings.model_dump(mode="json", exclude={"output_dir", "device", "workers"})
    if settings.data is not None:
        values["data"] = absolute(settings.data)
    return {"model": absolute(reference), "settings": values}


def find_begun(folder: Path, reference: str, settings: CompressConfig) -> bool:
    """Whether the folder holds this compression already; nothing is written.

    Raises:
        UserError: the folder is in use, is done, or holds another compression.
    """
    asked, file = _asked(reference, settings), folder / layout.COMPRESS
    content = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if content <= {layout.COMPRESS}:
        return False  # one that ended before it had made anything can be asked for otherwise
    if layout.COMPRESS not in content:
        raise UserError(f"--output-dir {folder} is in use", "a new or empty folder", "choose another name")
    known = json.loads(file.read_text(encoding="utf-8"))
    if (folder / layout.COMPRESSION).exists():
        raise UserError(
            f"{folder} is finished: nothing is left to do", "a new folder", f"look: warmstart show {folder}"
        )
    if known["model"] != asked["model"]:
        raise UserError(
            f"{folder} holds a compression of another model: {known['model']}",
            "the same model to go on with it, or a new folder",
            f"`warmstart resume {folder}` goes on with it",
        )
    if known != asked:
        before, now = known["settings"], asked["settings"]
        names = [name for name in now if before.get(name) != now[name]]
        told = ", ".join(f"--{name.replace('_', '-')} was {before.get(name)}" for name in names)
        raise UserError(
            f"{folder} holds a compression with other settings: {told}",
            "the same settings to go on with it, or a new folder",
            f"`warmstart resume {folder}` goes on with it",
        )
    return True


def begin(folder: Path, reference: str, settings: CompressConfig) -> bool:
    """Write down what is asked for, or find the same there; whether it is new. UserError: see find_begun."""
    if find_begun(folder, reference, settings):
        log.info("going on with the compression in %s", folder)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    writer.write_json(folder / layout.COMPRESS, _asked(reference, settings))
    return True


def leave_no_trace(folder: Path) -> None:
    """Of a compression that was refused before a recovery had begun."""
    rounds = [path for path in folder.glob(f"{ROUNDS}/*") if _DONE.fullmatch(path.name)]
    if not any(path.is_file() or layout.is_run(path) for path in rounds):
        shutil.rmtree(folder)


def unfinished(folder: Path) -> tuple[str, CompressConfig] | None:
    """The model and the settings of a compression that was interrupted; None: there is none in this folder."""
    file = folder / layout.COMPRESS
    if not file.exists() or (folder / layout.COMPRESSION).exists():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    return known["model"], CompressConfig(**known["settings"], output_dir=str(folder))
