"""The models whose answers are learned (Hinton et al. 2015): opened, aligned with the student's classes, asked.

Shapes: N images, K classes of the student; answers are logits (N, K), of masks (N, K, h, w).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from warmstart.config.distill_rules import is_onnx
from warmstart.config.distill_section import DistillConfig
from warmstart.config.places import expanded
from warmstart.console import log
from warmstart.data.decode import check_channels
from warmstart.errors import UserError, closest, listing
from warmstart.inference.features import Computed, hash_of
from warmstart.inference.memory import AtOnce
from warmstart.inference.onnx_model import answering, open_onnx
from warmstart.inference.reference import resolve_weights
from warmstart.inference.restore import restore
from warmstart.models.build import BuiltModel
from warmstart.records import Block, Preprocessing
from warmstart.tasks.mask_objectives import resized
from warmstart.tasks.objectives import mean_answers
from warmstart.tasks.task import Task

_LUMA = (0.299, 0.587, 0.114)  # of JPEG, as data/decode.to_channels


@dataclass(frozen=True, eq=False)
class Teacher:
    """One model in evaluation mode; `columns` are the outputs of the student's classes (None: all, in order).

    `sha256` is of its weights, or of the ONNX file. `blocks` are none where one cannot look into it.
    """

    name: str  # RUN@step, or the file
    model: str  # its architecture, `timm:resnet18`, or `onnx`
    sha256: str
    module: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    columns: tuple[int, ...] | None = None
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Its own preprocessing of the student's pixels, float (N, C, h, w) in [0, 1]: channels, size, mean, std."""
        own, given = self.preprocessing, pixels
        if own.num_channels != given.shape[1]:
            luma = given.new_tensor(_LUMA).view(1, 3, 1, 1)
            given = (
                given.expand(-1, 3, -1, -1) if own.num_channels == 3 else (given * luma).sum(1, keepdim=True)
            )
        if given.shape[2:] != own.image_size:
            given = F.interpolate(given, own.image_size, mode="bilinear", antialias=True)
        mean, std = (given.new_tensor(values).view(1, -1, 1, 1) for values in (own.mean, own.std))
        return (given - mean) / std

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        answers = self.module(self.inputs(pixels))
        return answers if self.columns is None else answers[:, self.columns]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.name,
            "model": self.model,
            "sha256": self.sha256,
            "classes": list(self.classes),
            "image_size": list(self.preprocessing.image_size),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class Teachers:
    """All teachers of a run, as one: of several the mean of their probabilities at `temperature`."""

    each: tuple[Teacher, ...]
    temperature: float
    multi_label: bool
    device: torch.device
    shape: tuple[int, ...] = ()  # of the answer to one image

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """Answers to uint8 images (N, h, w, C) as the student sees them, without a graph."""
        with torch.no_grad():
            pixels = torch.from_numpy(images).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            pixels = pixels.float().div(255)
            answers = [teacher(pixels) for teacher in self.each]
            if answers[0].ndim == 4 and len(answers) > 1:
                answers = [resized(each.float(), *images.shape[1:3]) for each in answers]
            return mean_answers(answers, self.temperature, self.multi_label)

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that their answers depend on, besides the pixels."""
        own = tuple((each.model, each.sha256, each.columns, each.preprocessing) for each in self.each)
        return own if len(own) == 1 else (*own, self.temperature, self.multi_label)


@dataclass(frozen=True)
class AnswerStore(Computed):
    """The teachers' answers to each image, computed once per view, and kept as features are.

    `versions` are those of the code that computes them.
    """

    teachers: Teachers
    versions: tuple[str, ...]
    device: torch.device
    precision: torch.dtype | None
    workers: int
    folder: Path | None
    at_once: AtOnce = field(default_factory=AtOnce)

    keeps_masks = False
    channels_last = False

    @property
    def made_by(self) -> tuple[Any, ...]:
        return "answers", self.versions, self.teachers.identity

    def reader(self, preprocessing: Preprocessing) -> Callable[[np.ndarray], torch.Tensor]:
        return self.teachers


def open_teachers(
    distill: DistillConfig,
    student: BuiltModel,
    task: Task,
    device: torch.device,
    recorded: Sequence[dict[str, Any]] | None = None,
) -> Teachers | None:
    """Those of `--teacher`; `recorded` is what the run wrote of them when it was started. None without any.

    Raises:
        UserError: a model that cannot be read, of another task or other classes, or another one than was recorded.
    """
    if not distill.teacher:
        return None
    opened: list[Teacher] = []
    for number, name in enumerate(distill.teacher):
        teacher = _open_onnx(name, student) if is_onnx(name) else _open(name, student, device)
        if recorded is not None and teacher.sha256 != recorded[number]["sha256"]:
            raise UserError(
                f"the teacher {name} has changed since the run was started",
                "the weights that it had: a resumed run is the run that was started",
                "restore it, or start a new run",
            )
        if teacher.name in [other.name for other in opened]:
            raise UserError(f"the teacher {name} is named twice: {teacher.name}", "each model once")
        opened.append(_aligned(teacher, student, task, distill))
    teachers = Teachers(tuple(opened), distill.temperature, student.multi_label, device)
    height, width = student.preprocessing.image_size
    blank = np.zeros((2, height, width, student.preprocessing.num_channels), np.uint8)
    return replace(teachers, shape=tuple(teachers(blank).shape[1:]))


def _open(name: str, student: BuiltModel, device: torch.device) -> Teacher:
    if (several := resolve_weights(expanded(name)).run) is not None and several.tasks:
        raise UserError(f"the teacher {name} is a run of several tasks", "a teacher of one task")
    restored = restore(expanded(name), device, merged=True)
    built = restored.built
    built.module.requires_grad_(False)
    is_told = built.names_known or built.multi_label
    own = ("masks" if built.segments else "several labels" if built.multi_label else "one class", is_told)
    _check_task(name, *own, student)
    check_channels(student.preprocessing.num_channels, built.preprocessing.num_channels)
    classes = built.classes if built.names_known else ()
    digest = hash_of(built.module.state_dict().items())
    run, path = restored.reference.run, built.source["path"]
    place = name if name.startswith("hf:") or path is None else str(Path(path).resolve())
    return Teacher(
        place if run is None else f"{run.path.resolve()}@{restored.reference.step}",
        built.name,
        digest,
        built.module,
        built.preprocessing,
        classes or tuple(map(str, range(len(built.classes)))),
        blocks=built.blocks,
        notes=() if classes else ("it names no classes: they are taken in the order of the data's",),
    )


def _open_onnx(name: str, student: BuiltModel) -> Teacher:
    path, own = Path(expanded(name)).resolve(), student.preprocessing
    file, notes = open_onnx(path), []
    stated = {key: value for key, value in file.stated.items() if key != "stretch"}
    mean, std = (stated.get(key, getattr(own, key)) for key in ("mean", "std"))
    if missing := [key for key in ("mean", "std") if key not in stated]:
        notes.append(f"it states no {listing(missing)}: the student's are taken")
    size = file.size or stated.get("image_size") or own.image_size
    channels = file.num_channels or len(mean)
    if len(mean) != channels and "mean" in stated:
        raise UserError(f"{name} takes {channels} channels and states {len(mean)} means", "one per channel")
    mean, std = (values if len(values) == channels else (values[0],) * channels for values in (mean, std))
    check_channels(own.num_channels, channels)
    module = answering(file, channels, size, name, student.multi_label)
    if module.gives_probabilities:
        notes.append("it gives probabilities: the logits that have them are taken")
    answer = module(torch.zeros(1, channels, *size))
    _check_task(
        name, "masks" if answer.ndim == 4 else "one class", answer.ndim == 4 or student.segments, student
    )
    if file.classes is not None and len(file.classes) != answer.shape[1]:
        raise UserError(
            f"{name} names {len(file.classes)} classes and gives {answer.shape[1]} scores",
            "one name per score",
        )
    if file.classes is None:
        notes.append("it names no classes: they are taken in the order of the data's")
    classes = file.classes or tuple(str(number) for number in range(answer.shape[1]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    preprocessing = Preprocessing(size, mean, std)
    return Teacher(
        str(path),
        f"onnx {version('onnxruntime')}",
        digest,
        module,
        preprocessing,
        classes,
        notes=tuple(notes),
    )


def _check_task(name: str, kind: str, is_told: bool, student: BuiltModel) -> None:
    """A file without a word about it may answer either kind of question about labels."""
    wanted = "masks" if student.segments else "several labels" if student.multi_label else "one class"
    if kind == wanted or not (is_told or "masks" in (kind, wanted)):
        return
    raise UserError(
        f"the teacher {name} answers another task: its answers are {kind}, and these data have {wanted}",
        "a teacher of the same task",
        "train one on these data with `warmstart finetune`",
    )


def _aligned(teacher: Teacher, student: BuiltModel, task: Task, distill: DistillConfig) -> Teacher:
    """The teacher with the outputs that are the student's classes, by their names."""
    ours, theirs, calls = task.classes, teacher.classes, dict(distill.classes)
    if unknown := [name for name in calls if name not in ours]:
        raise UserError(
            f"--distill.classes: the student has no class {unknown[0]!r}",
            listing(ours, 20),
            closest(unknown[0], ours),
        )
    is_nameless = any("names no classes" in note for note in teacher.notes)
    if is_nameless and not calls and len(theirs) == len(ours):
        log.warning("the teacher %s names no classes; taken by order: %s", teacher.name, listing(ours, 6))
        return replace(teacher, classes=ours)
    wanted = [calls.get(name, name) for name in ours]
    if missing := [name for name in wanted if name not in theirs]:
        raise UserError(
            f"the teacher {teacher.name} knows nothing of {listing(map(repr, missing), 6)}; "
            f"its {len(theirs)} classes are {listing(theirs, 12)}",
            f"a teacher that knows all {len(ours)} classes of the data",
            closest(missing[0], theirs) or "--distill.classes OURS=THEIRS where it only calls them otherwise",
        )
    if len(set(wanted)) != len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise UserError(f"--distill.classes: two classes are the teacher's {twice!r}", "one class for each")
    columns = tuple(theirs.index(name) for name in wanted)
    if columns == tuple(range(len(theirs))):
        return teacher
    note = f"its outputs of {len(columns)} of {len(theirs)} classes are taken"
    note += "" if student.multi_label else ", and their probabilities made to add up to 1"
    return replace(teacher, columns=columns, notes=(*teacher.notes, note))
