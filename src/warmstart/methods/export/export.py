"""A trained model in the form that another program reads, kept only once that form has given the same answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from warmstart.config.schema import DataConfig
from warmstart.errors import UserError, closest
from warmstart.inference.restore import Restored
from warmstart.methods.export.card import card_text, entries, own_text
from warmstart.methods.export.hub_folders import write_hf, write_timm
from warmstart.methods.export.lineage import licence_of
from warmstart.methods.export.onnx_file import write_onnx
from warmstart.methods.export.parity import Parity, check_parity, make_probe
from warmstart.methods.export.program_file import write_program
from warmstart.methods.export.source_file import Change, Source, open_source_file, told_of, write_source
from warmstart.models.card_file import card_beside
from warmstart.models.recipe import SPARSE
from warmstart.models.tensor_file import TensorFile
from warmstart.records import Thresholds
from warmstart.run import writer
from warmstart.shown import Shown
from warmstart.tasks.multilabel import MultiLabel

SOURCE = "source"
# Format -> what the name of its file ends in; a folder's has no suffix.
_ENDS = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "safetensors": "-export.safetensors",
    "hf": "-hf",
    "timm": "-timm",
}
_NEXT = {
    "onnx": "warmstart predict {path} IMAGES; or onnxruntime.InferenceSession({path!r})",
    "torch-export": "torch.export.load({path!r}).module()",
    "safetensors": "warmstart predict {path} IMAGES, or finetune --weights {path}",
    "hf": "transformers.{auto}.from_pretrained({path!r})",
    "timm": "timm.create_model('local-dir:{path}', pretrained=True)",
    SOURCE: "whatever read {source} reads {path}",
}


@dataclass(frozen=True)
class ExportRequest:
    """What was asked for; `num_images` are compared, of `data` where given, else of the run's own."""

    to: str
    output: str | None = None
    data: DataConfig | None = None
    num_images: int = 32
    workers: int = 0


@dataclass(frozen=True)
class Exported(Shown):
    """What was written, and how its answers compare with the model's."""

    model: str
    to: str
    path: str
    num_bytes: int
    classes: tuple[str, ...]
    licence: str | None
    parity: Parity
    change: Change | None  # of a source
    look: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return "\n".join(
            [
                f"{self.model} as {self.to}: {self.path}, {self.num_bytes / 1e6:.2f} MB",
                *(f"note: {note}" for note in self.notes),
                f"licence of the weights it was started from: {self.licence or 'not stated'}",
                *(() if self.change is None else (self.change.text(),)),
                f"check: {self.parity.text()}",
                f"look: {self.look}",
            ]
        )


def export(request: ExportRequest, restored: Restored) -> Exported:
    """Write the model, which has its adapters merged, read it again in a fresh process, and compare the answers.

    Raises:
        UserError: an unknown format, or one that cannot hold this model; something is at the output already; the
            answers are others: then nothing is kept.
    """
    check_format(request.to)
    if restored.built.source["kind"] == "onnx":
        raise UserError(
            f"{restored.label} is exported already", "a run or a file of weights", "export what it came from"
        )
    if request.to == "safetensors" and restored.built.name.startswith("object:"):
        raise UserError(
            f"--to safetensors: {restored.label} is a Python object, whose code no other process has to read it with",
            "a model that its name makes",
            f"--to onnx or --to torch-export, which hold the graph; {restored.reference.file} has the weights, under "
            "the object's own names",
        )
    if request.to in (SOURCE, "hf", "timm"):
        _check_uncompressed(request.to, restored)
    source = open_source_file(restored) if request.to == SOURCE else None
    target = _target(request, restored, _end(request.to, source))
    restored = _with_thresholds(restored)
    probe = make_probe(restored, request.data, request.num_images, request.workers)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as place:
        made, change = Path(place) / target.name, None
        if source is None:
            _WRITERS[request.to](restored, made)
            parity = check_parity(restored, probe, request.to, made, {})
        else:
            change = write_source(restored, source, made)
            told = told_of(restored, source)
            parity = check_parity(restored, probe, SOURCE, source.file_in(made), told, source.stored)
        made.replace(target)
        if source is not None:
            text = card_text(restored, source.file_in(target), own_names=source.is_ours)
            writer.write_text(card_beside(target), text)
    return Exported(
        model=restored.label,
        to=request.to,
        path=str(target),
        num_bytes=sum(file.stat().st_size for file in ([target] if target.is_file() else target.iterdir())),
        classes=restored.built.classes,
        licence=licence_of(restored),
        parity=parity,
        change=change,
        look=_look(request.to, target, restored, source),
        notes=restored.built.notes,
    )


def check_format(to: str) -> None:
    if to not in _NEXT:
        raise UserError(f"--to {to}", f"one of {', '.join(_NEXT)}", closest(to, list(_NEXT)))


def _check_uncompressed(to: str, restored: Restored) -> None:
    """UserError where the model is of other layers or sizes than the architecture of its name."""
    recipe = restored.built.recipe
    made = [edit.kind for edit in recipe.edits if edit.kind != SPARSE] if recipe is not None else []
    if made:
        raise UserError(
            f"--to {to}: {restored.label} is compressed ({', '.join(made)}), and its architecture is no longer that of "
            f"{restored.built.name}",
            "a model as its zoo makes it",
            "--to onnx or --to torch-export, which hold the graph, or --to safetensors, which holds the recipe",
        )


def _end(to: str, source: Source | None) -> str:
    if source is None:
        return _ENDS[to]
    return "-source" + ("" if source.container.index is not None else source.path.suffix)


def _target(request: ExportRequest, restored: Restored, end: str) -> Path:
    """Where to write: as asked, else beside the run or the file. UserError: something is there already."""
    run = restored.reference.run
    source = Path(str(restored.built.source["path"] or restored.built.name)) if run is None else run.path
    source = source.resolve() if source.name in ("", "..") else source
    source = source if source.exists() else Path(source.name)  # OWNER/NAME of the hub
    name = source.stem if source.is_file() else source.name
    name = name if run is None or run.task is None else f"{name}-{run.task}"
    target = Path(request.output) if request.output else source.with_name(f"{name}{end}")
    if (suffix := Path(f"x{end}").suffix) and target.suffix != suffix:
        raise UserError(f"--output {target}", f"a name that ends in {suffix}, for --to {request.to}")
    for file in (target, *([card_beside(target)] if request.to == SOURCE else [])):
        if file.exists():
            raise UserError(f"{file} exists already", "a new file or folder", "--output NAME")
    return target


def _with_thresholds(restored: Restored) -> Restored:
    """The model with the thresholds that its run has recorded beside it."""
    task = restored.task
    if not isinstance(task, MultiLabel) or task.thresholds is None:
        return restored
    return replace(restored, built=replace(restored.built, thresholds=Thresholds(task.thresholds)))


def write_graph(restored: Restored, path: Path) -> None:
    """One ONNX file with all that is known of the model."""
    write_onnx(_with_thresholds(restored).built, path, beside=entries(restored))


def _write_safetensors(restored: Restored, path: Path) -> None:
    writer.write_whole(path, TensorFile(restored.built.module.state_dict(), own_text(restored)))


def _look(to: str, target: Path, restored: Restored, source: Source | None) -> str:
    kind = "SemanticSegmentation" if restored.built.segments else "ImageClassification"
    known = {"path": str(target), "source": "" if source is None else str(source.path)}
    return _NEXT[to].format(**known, auto=f"AutoModelFor{kind}")


_WRITERS: dict[str, Callable[[Restored, Path], None]] = {
    "onnx": write_graph,
    "torch-export": write_program,
    "safetensors": _write_safetensors,
    "hf": write_hf,
    "timm": write_timm,
}
