"""Runs that learn from a teacher: the loss by a formula, kept answers, resume to the bit, hints, ONNX, masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from warmstart import api
from warmstart.config.distill_section import DistillConfig
from warmstart.data.batches import training_batches
from warmstart.engine import train
from warmstart.engine.job import Job
from warmstart.engine.lessons.hints import Hints, as_map, match_hints
from warmstart.engine.lessons.lessons import make_lessons
from warmstart.engine.lessons.teachers import Teacher, open_teachers
from warmstart.engine.prepare import prepare
from warmstart.errors import Interrupted, UserError
from warmstart.inference.inputs import InputBuffer
from warmstart.inference.onnx_model import answering, open_onnx
from warmstart.records import Preprocessing
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]
CLASSES = ("ant", "bee", "cat")
FROZEN = {"freeze": "conv*", "feature_cache": "on"}
WAYS = {  # how a teacher is asked: the settings, and whether its answers are kept
    "kept": ({"augment": "none"}, True),
    "two views": ({"views": 2, "epochs": 4}, True),
    "every batch": ({}, False),
    "frozen prefix": (FROZEN, True),
    "hints": ({"distill.hints": 2.0}, False),
}


@pytest.fixture
def teacher(finetune: FINETUNE) -> Run:
    return finetune("teacher", lr=0.02, seed=5)


def weights(run: Run) -> dict[str, Tensor]:
    step = run.pointer(layout.LAST)
    assert step is not None
    return load_file(run.checkpoint(step) / layout.MODEL)


def trained(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metrics.rows if row["kind"] == "train"]


def job_of(loaded: Any) -> Job:
    return prepare(loaded.config, loaded.origins, Path("nowhere")).job


def first_batch(job: Job) -> Any:
    return next(training_batches(job.dataset.training, job.train_view, job.windows(0)[:1], 0, 0))


def formula(logits: Tensor, answers: Tensor, targets: Tensor, alpha: float, temperature: float) -> Tensor:
    """(1 - alpha) CE + alpha T^2 KL(teacher || student), the mean over items, written out in float64."""
    hard = -logits.log_softmax(1)[torch.arange(len(targets)), targets].mean()
    theirs, ours = (answers / temperature).softmax(1), (logits / temperature).log_softmax(1)
    soft = (theirs * (theirs.log() - ours)).sum(1).mean()
    return (1 - alpha) * hard + alpha * temperature**2 * soft


@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 4.0), (0.9, 2.0), (1.0, 1.0)])
def test_a_step_is_that_of_the_formula(
    alpha: float, temperature: float, teacher: Run, settings: SETTINGS, tmp_path: Path
) -> None:
    given = {"teacher": str(teacher.path), "distill.alpha": alpha, "distill.temperature": temperature}
    given |= {
        "optimizer": "sgd",
        "momentum": 0,
        "lr": 0.1,
        "clip": "none",
        "weight_decay": 0,
        "scheduler": "none",
    }
    given |= {"dropout": 0, "freeze_bn": True, "max_steps": 1}
    loaded = settings("student", **given)
    job = job_of(loaded)
    batch, student = first_batch(job), job.built.module.double().eval()
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).double() / 255
    assert job.teachers is not None
    (known,) = job.teachers.each
    own = job.built.preprocessing
    logits = student((pixels - own.mean[0]) / own.std[0])
    answers = known.module.double()((pixels - known.preprocessing.mean[0]) / known.preprocessing.std[0])
    loss = formula(logits, answers, torch.from_numpy(batch.targets), alpha, temperature)
    names = [name for name, p in student.named_parameters() if p.requires_grad and "bn" not in name]
    parameters = dict(student.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    run = Run(train.finetune(loaded))
    after = weights(run)
    for name, gradient in zip(names, gradients, strict=True):
        expected = (parameters[name] - 0.1 * gradient).detach().float()
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
    (row,) = trained(run)
    assert (1 - alpha) * row["loss"] + row["distill"] == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_resume_is_to_the_bit(
    way: str,
    teacher: Run,
    settings: SETTINGS,
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, is_kept = WAYS[way]
    given = {"teacher": "../teacher", **given}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # the teacher is found from anywhere
    straight = Run(train.finetune(settings("straight", **given)))
    assert straight.resolved["features"]["answers"] is is_kept
    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **given))
    monkeypatch.chdir(tmp_path)
    stopped = Run(train.resume(str(tmp_path / "stopped"), {}))
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(stopped)[name]), name
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in run.metrics.rows]
        for run in (straight, stopped)
    ]
    assert timeless[0] == [row for row in timeless[1] if row["kind"] != "resume"]
    state = [
        load_file(run.checkpoint(run.status["step"]) / layout.STATE_TENSORS) for run in (straight, stopped)
    ]
    assert all(torch.equal(tensor, state[1][name]) for name, tensor in state[0].items())
    has_hints = any(name.startswith("hints.projections.0") for name in state[0])
    assert has_hints == (way == "hints")
    assert not any("projections" in name for name in weights(straight))


@pytest.mark.parametrize("given", [{"augment": "none"}, {"views": 2, "epochs": 4}])
def test_kept_answers_are_those_of_every_batch(
    given: dict[str, Any], teacher: Run, finetune: FINETUNE
) -> None:
    given = {"teacher": str(teacher.path), "sampler": "balanced", **given}
    kept = finetune("kept", **given)
    asked = finetune("asked", feature_cache="off", **given)
    assert [run.resolved["features"]["answers"] for run in (kept, asked)] == [True, False]
    for name, tensor in weights(kept).items():
        torch.testing.assert_close(tensor, weights(asked)[name], rtol=1e-3, atol=1e-5)
    assert [row["distill"] for row in trained(kept)] == pytest.approx(
        [row["distill"] for row in trained(asked)], rel=1e-4
    )


def test_a_frozen_prefix_and_kept_answers_see_the_same_views(teacher: Run, finetune: FINETUNE) -> None:
    given = {"teacher": str(teacher.path), "freeze": "conv*", "views": 2, "epochs": 4}
    kept = finetune("kept", feature_cache="on", **given)
    whole = finetune("whole", feature_cache="off", **given)
    assert kept.resolved["features"]["cut"] and kept.resolved["features"]["answers"]
    for one, other in zip(trained(kept), trained(whole), strict=True):
        assert (one["loss"], one["distill"]) == pytest.approx((other["loss"], other["distill"]), rel=1e-3)


def test_why_answers_are_not_kept_is_told(
    teacher: Run, settings: SETTINGS, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {
        "augmentation shows other views": {},
        "mixed images are new": {"mixup": 0.5},
        "hints need its maps": {"distill.hints": 1.0, "augment": "none"},
        "1 epochs of 1 views repeat nothing": {"augment": "none", "epochs": 1},
        "switched off": {"feature_cache": "off"},
    }
    for number, (reason, given) in enumerate(reasons.items()):
        prepared = settings(f"run{number}", teacher=str(teacher.path), **given)
        found = prepare(prepared.config, prepared.origins, Path("nowhere")).resolved["features"]
        assert not found["answers"] and reason in found["answers_reason"]
    caplog.set_level("INFO")
    train.dry_run(settings("told", teacher=str(teacher.path)))
    assert "the teacher answers in every step: augmentation shows other views" in caplog.text
    assert "loss: 0.5 x that of the labels + 0.5 x KL" in caplog.text


def test_lwf_and_a_teacher_are_rows_of_their_own(teacher: Run, finetune: FINETUNE, tmp_path: Path) -> None:
    given = {"retain": str(pictures(tmp_path / "other")), "retain.lwf": 1.0, "teacher": str(teacher.path)}
    run = finetune("both", model=None, weights=str(teacher.path), **given)
    assert all(row["lwf"] >= 0 and row["distill"] >= 0 for row in trained(run))
    assert trained(run)[-1]["lwf"] > 0 and trained(run)[-1]["distill"] > 0


def pictures(root: Path, classes: tuple[str, ...] = CLASSES, num: int = 12) -> Path:
    rng = np.random.default_rng(3)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(num):
            pixels = rng.normal(90 + 30 * number, 30, (18, 18)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


def test_more_classes_are_selected_and_fewer_refused(
    finetune: FINETUNE, settings: SETTINGS, tmp_path: Path
) -> None:
    wide = finetune("wide", data=str(pictures(tmp_path / "four", ("elk", "cat", "bee", "ant"))), lr=0.02)
    job = job_of(settings("student", teacher=str(wide.path)))
    assert job.teachers is not None
    (known,) = job.teachers.each
    assert known.columns == (0, 1, 2) and known.classes == ("ant", "bee", "cat", "elk")
    batch = first_batch(job)
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255
    whole = known.module((pixels - known.preprocessing.mean[0]) / known.preprocessing.std[0]).double()
    expected = whole.softmax(1)[:, :3] / whole.softmax(1)[:, :3].sum(1, keepdim=True)
    found = job.teachers(batch.images).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    narrow = finetune("narrow", data=str(pictures(tmp_path / "two", ("ant", "bee"))))
    with pytest.raises(UserError, match="knows nothing of 'cat'"):
        finetune("refused", teacher=str(narrow.path))
    with pytest.raises(UserError, match="two classes are the teacher's 'bee'"):
        finetune("twice", teacher=str(narrow.path), **{"distill.classes": "cat=bee"})
    with pytest.raises(UserError, match="the student has no class 'dog'"):
        finetune("unknown", teacher=str(wide.path), **{"distill.classes": "dog=elk"})
    mapped = job_of(settings("mapped", teacher=str(wide.path), **{"distill.classes": "cat=elk"}))
    assert mapped.teachers is not None and mapped.teachers.each[0].columns == (0, 1, 3)


def test_several_teachers_are_one(teacher: Run, finetune: FINETUNE, settings: SETTINGS) -> None:
    second = finetune("second", lr=0.005, seed=9)
    job = job_of(settings("student", teacher=f"{teacher.path},{second.path}"))
    batch = first_batch(job)
    assert job.teachers is not None
    pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float() / 255
    each = [(known(pixels).double() / 4).softmax(1) for known in job.teachers.each]
    found = (job.teachers(batch.images).double() / 4).softmax(1)
    torch.testing.assert_close(found, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-7)
    run = finetune("both", teacher=f"{teacher.path},{second.path}", augment="none")
    assert len(run.resolved["teachers"]) == 2 and trained(run)[0]["distill"] > 0


def test_a_teacher_sees_the_same_pixels_its_own_way() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    own = Preprocessing((16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    teacher = Teacher("t", "none", "", nn.Identity(), own, ("a", "b"))
    expected = InputBuffer(own, torch.device("cpu"), False)(images)
    torch.testing.assert_close(teacher.inputs(pixels), expected, rtol=1e-5, atol=1e-6)
    grey = replace(teacher, preprocessing=Preprocessing((16, 16), (0.0,), (1.0,)))
    luma = (images * np.array([0.299, 0.587, 0.114])).sum(3) / 255
    np.testing.assert_allclose(grey.inputs(pixels)[:, 0].numpy(), luma, atol=1e-6)
    larger = replace(teacher, preprocessing=Preprocessing((32, 24), (0.0,) * 3, (1.0,) * 3))
    assert larger.inputs(pixels).shape == (3, 3, 32, 24)
    assert float((larger.inputs(pixels).mean((2, 3)) - pixels.mean((2, 3))).abs().max()) < 0.02


def test_teachers_of_another_input_and_architecture(
    teacher: Run, finetune: FINETUNE, data: Path, tmp_path: Path
) -> None:
    other = finetune("colour", model="timm:resnet10t", image_size=32, lr=1e-3)
    run = finetune("student", teacher=str(other.path), **{"distill.hints": 1.0})
    assert run.resolved["teachers"][0]["image_size"] == [32, 32]
    assert trained(run)[-1]["hints"] > 0
    assert {pair["stride"] for pair in run.resolved["hints"]} <= {2, 4, 8, 16}


def test_hints_fall_when_they_are_learned(teacher: Run, finetune: FINETUNE) -> None:
    given = {
        "teacher": str(teacher.path),
        "distill.alpha": 0,
        "distill.hints": 5.0,
        "epochs": 8,
        "augment": "none",
    }
    run = finetune("student", **given, lr=0.01)
    assert "distill" not in trained(run)[0]
    assert trained(run)[-1]["hints"] < 0.8 * trained(run)[0]["hints"]


def test_hints_are_the_distance_of_normalised_maps(teacher: Run, settings: SETTINGS) -> None:
    job = job_of(settings("student", teacher=str(teacher.path), **{"distill.hints": 2.0, "dropout": 0}))
    hints = Hints(job.hint_pairs, 0, job.device)
    job.built.module.eval()
    lessons = make_lessons(job, job.built.module, lambda module: module, 0, hints)
    assert lessons is not None and lessons.names == ("distill", "hints")
    batch = first_batch(job)
    given = InputBuffer(job.built.preprocessing, job.device, False)(batch.images)
    with lessons.watch():
        outputs = job.built.module(given)
    sums = lessons(batch, given, outputs, torch.from_numpy(batch.targets))
    expected = 0.0
    assert job.teachers is not None
    for pair, projection in zip(job.hint_pairs, hints.projections, strict=True):
        maps = []
        for module, path in (
            (job.built.module, pair.student_path),
            (job.teachers.each[0].module, pair.teacher_path),
        ):
            found: list[Tensor] = []
            hook = module.get_submodule(path).register_forward_hook(
                lambda m, a, out, kept=found: kept.append(out)
            )
            module(given)
            hook.remove()
            maps.append(found[0].double())
        matrix = projection.weight.double()[:, :, 0, 0]
        own = torch.einsum("nchw,dc->ndhw", maps[0], matrix) + projection.bias.double()[None, :, None, None]
        p, t = (m.flatten(1) / m.flatten(1).norm(dim=1, keepdim=True) for m in (own, maps[1]))
        expected += float(((p - t) ** 2).sum().detach())
    assert float(sums[1].detach()) == pytest.approx(2.0 * expected / len(job.hint_pairs), rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((2, 8, 4, 4), (2, 8, 4, 4)),
        ((2, 4, 4, 8), (2, 8, 4, 4)),
        ((2, 16, 8), (2, 8, 4, 4)),
        ((2, 17, 8), (2, 8, 4, 4)),
        ((2, 23, 8), None),
        ((2, 8), None),
    ],
)
def test_maps_and_tokens(shape: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    seen = as_map(torch.zeros(shape), (32, 32))
    assert (None if seen is None else tuple(seen.shape)) == found


def test_tokens_lie_as_their_patches() -> None:
    grid = torch.arange(2 * 3 * 5.0).view(1, 2, 3, 5)
    tokens = torch.cat([torch.full((1, 1, 2), -1.0), grid.flatten(2).transpose(1, 2)], dim=1)
    seen = as_map(tokens, (48, 80))
    assert seen is not None and torch.equal(seen, grid)


def test_models_without_a_resolution_in_common_are_refused(teacher: Run, settings: SETTINGS) -> None:
    job = job_of(settings("student", teacher=str(teacher.path)))
    assert job.teachers is not None
    blind = replace(job.teachers, each=(replace(job.teachers.each[0], blocks=()),))
    with pytest.raises(UserError, match="no block of builtin:fashion_cnn gives maps of a resolution"):
        match_hints(job.built, blind, job.plan)


# ---- ONNX


def write_onnx(
    path: Path, matrix: np.ndarray, metadata: dict[str, str], last: str = "", num: Any = "N"
) -> Path:
    """A linear classifier (pixels, K) of grey images of 16 px."""
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["z"])]
    nodes += [helper.make_node(last, ["z"], ["y"])] if last else []  # softmax is over the last axis
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [num, 1, 16, 16])],
        [helper.make_tensor_value_info("y" if last else "z", TensorProto.FLOAT, [num, matrix.shape[1]])],
        [numpy_helper.from_array(matrix.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("last", ["", "Softmax"])
@pytest.mark.parametrize("num", ["N", 1, 5])
def test_an_onnx_file_answers_as_its_formula(last: str, num: Any, settings: SETTINGS, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(0, 0.02, (256, 4))
    metadata = {"classes": json.dumps(["bee", "elk", "ant", "cat"]), "mean": "[0.5]", "std": "[0.25]"}
    path = write_onnx(tmp_path / "teacher.onnx", matrix, metadata, last, num)
    job = job_of(settings("student", teacher=str(path)))
    assert job.teachers is not None and job.teachers.each[0].columns == (2, 0, 3)
    batch = first_batch(job)
    z = ((batch.images.reshape(len(batch), -1) / 255 - 0.5) / 0.25) @ matrix
    p = np.exp(z)[:, [2, 0, 3]]
    found = job.teachers(batch.images).double().softmax(1).numpy()
    np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), rtol=1e-4)


def test_probabilities_of_an_onnx_file_are_those_of_its_task(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(0, 0.02, (256, 3))
    plain, sigmoid, softmax = (
        open_onnx(write_onnx(tmp_path / f"{last}.onnx", matrix, {}, last))
        for last in ("", "Sigmoid", "Softmax")
    )
    noise = torch.randn(5, 1, 16, 16)
    logits = answering(plain, 1, (16, 16), "plain", multi_label=True)(noise)
    found = answering(sigmoid, 1, (16, 16), "sigmoid", multi_label=True)
    assert found.gives_probabilities
    torch.testing.assert_close(found(noise), logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="probabilities of each label by itself"):
        answering(sigmoid, 1, (16, 16), "sigmoid")
    with pytest.raises(UserError, match="probabilities of one class"):
        answering(softmax, 1, (16, 16), "softmax", multi_label=True)


def test_a_student_of_other_weights_is_told_what_its_teacher_was_trained_on(
    finetune: FINETUNE, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    teacher = finetune("teacher", seed=1)
    start = finetune("start", seed=2)
    finetune("student", weights=str(start.path), teacher=str(teacher.path))
    assert f"images have the ids of training images of {teacher.path}" in caplog.text
    with pytest.raises(UserError, match="is named twice"):
        finetune("twice", teacher=f"{teacher.path},{teacher.path.parent}/./teacher")


def test_a_run_with_an_onnx_teacher(
    finetune: FINETUNE, settings: SETTINGS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = np.random.default_rng(0).normal(0, 0.02, (256, 3))
    path = write_onnx(tmp_path / "teacher.onnx", matrix, {})
    run = finetune("student", teacher=str(path), augment="none")
    assert trained(run)[0]["distill"] > 0 and run.resolved["features"]["answers"]
    assert "names no classes; taken by order: ant, bee, cat" in caplog.text
    assert "it states no mean, std: the student's are taken" in run.resolved["teachers"][0]["notes"]
    with pytest.raises(UserError, match="is an ONNX file, which gives answers and no maps"):
        finetune("hints", teacher=str(path), **{"distill.hints": 1.0})
    two = write_onnx(tmp_path / "two.onnx", matrix[:, :2], {})
    with pytest.raises(UserError, match="knows nothing of 'ant', 'bee', 'cat'"):
        finetune("two", teacher=str(two))
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.onnx cannot be opened"):
        finetune("broken", teacher=str(tmp_path / "broken.onnx"))


# ---- Masks and several labels


@pytest.fixture
def masked(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    for name in range(30):
        mask = np.zeros((32, 32), np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + 10, left : left + 10] = 1
        mask[:2] = 255
        pixels = rng.integers(0, 128, (32, 32, 3), np.uint8) + 100 * (mask == 1)[..., None]
        for kind, content in (("images", pixels.astype(np.uint8)), ("masks", mask)):
            (tmp_path / "fields" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / "fields" / kind / f"{name}.png")
    (tmp_path / "fields" / "classes.txt").write_text("ground\nbox\n")
    return {"data": str(tmp_path / "fields"), "model": "builtin:microsegformer", "image_size": 32, "lr": 2e-3}


@pytest.mark.parametrize(
    "given", [{"augment": "none"}, {"views": 2, "epochs": 3}, {}, {"distill.hints": 1.0}]
)
def test_masks_are_learned_from_a_teacher(
    given: dict[str, Any],
    masked: dict[str, Any],
    finetune: FINETUNE,
    settings: SETTINGS,
    interrupt_at: Callable[..., None],
    tmp_path: Path,
) -> None:
    teacher = finetune("segments", **masked, seed=3)
    given = {**masked, **given, "teacher": str(teacher.path)}
    straight = finetune("straight", **given)
    assert straight.resolved["features"]["answers"] is ("augment" in given or "views" in given)
    assert trained(straight)[0]["distill"] > 0
    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **given))
    stopped = Run(train.resume(str(tmp_path / "stopped"), {}))
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(straight).items())
    if given.get("augment"):
        asked = finetune("asked", **given, feature_cache="off")
        assert [row["distill"] for row in trained(asked)] == pytest.approx(
            [row["distill"] for row in trained(straight)], rel=1e-4
        )


def test_a_teacher_of_another_task_is_refused(
    masked: dict[str, Any], teacher: Run, finetune: FINETUNE
) -> None:
    with pytest.raises(
        UserError, match="answers another task: its answers are one class, and these data have masks"
    ):
        finetune("student", **masked, teacher=str(teacher.path))
    segments = finetune("segments", **masked)
    with pytest.raises(UserError, match="its answers are masks, and these data have one class"):
        finetune("student", teacher=str(segments.path))


def test_several_labels(finetune: FINETUNE, data: Path, tmp_path: Path) -> None:
    rows = ["file,striped,dark,large"]
    rng = np.random.default_rng(0)
    for path in sorted(data.glob("*/*.png")):
        rows.append(f"{path.as_posix()},{','.join(map(str, rng.integers(0, 2, 3)))}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    labels = {"data": str(tmp_path / "labels.csv"), "label_columns": "striped,dark,large"}
    known = finetune("known", **labels)
    run = finetune("student", **labels, teacher=str(known.path), augment="none", seed=2)
    assert trained(run)[0]["distill"] > 0
    plain = finetune("plain")
    with pytest.raises(UserError, match="its answers are several labels, and these data have one class"):
        finetune("refused", teacher=str(known.path))
    with pytest.raises(UserError, match="its answers are one class, and these data have several labels"):
        finetune("other", **labels, teacher=str(plain.path))


# ---- The verb, children, bad input


def test_distill_takes_the_teachers_data(teacher: Run, tmp_path: Path) -> None:
    result = api.distill(
        "builtin:fashion_cnn", teacher=str(teacher.path), weights="none", image_size=16, batch_size=8, epochs=1,
        device="cpu", tensorboard=False, pictures=False, output_dir=str(tmp_path / "student"), seed=7,
    )  # fmt: skip
    run = Run(Path(result.run))
    assert run.resolved["data"]["path"] == teacher.resolved["data"]["path"]
    assert run.resolved["data"]["split"] == {**teacher.resolved["data"]["split"]}
    assert run.config["distill"]["teacher"] == [str(teacher.path)]
    assert f"teacher {teacher.path}@" in api.show(result.run).text()
    assert api.evaluate(result.run, split="val").metrics["accuracy"] >= 0
    with pytest.raises(UserError, match="--teacher is missing"):
        api.distill("builtin:fashion_cnn", str(tmp_path), weights="none")


def test_a_child_goes_on_with_its_teacher(
    teacher: Run, finetune: FINETUNE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"teacher": str(teacher.path), "distill.hints": 1.0, "scheduler": "none"}
    long = finetune("long", **given, epochs=3)
    short = finetune("short", **given)
    child = Run(Path(api.continue_run(f"{short.path}@6", epochs=3, output_dir=str(tmp_path / "child")).run))
    assert all(torch.equal(tensor, weights(child)[name]) for name, tensor in weights(long).items())


def test_a_teacher_that_changed_is_noticed(
    teacher: Run, finetune: FINETUNE, settings: SETTINGS, interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", teacher=str(teacher.path)))
    recorded = json.loads((tmp_path / "stopped" / layout.RESOLVED).read_text())
    (known,) = recorded["teachers"]
    job = job_of(settings("again", teacher=str(teacher.path)))
    other = [{**known, "sha256": "0"}]
    with pytest.raises(UserError, match="has changed since the run was started"):
        open_teachers(DistillConfig(teacher=str(teacher.path)), job.built, job.task, job.device, other)
    shutil.rmtree(teacher.path)
    with pytest.raises(UserError):
        train.resume(str(tmp_path / "stopped"), {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"distill.temperature": 2}, "--distill.temperature without --teacher"),
        ({"teacher": "absent"}, "--teacher: absent does not exist"),
        ({"teacher": "TEACHER", "distill.alpha": 0}, "nothing is learned from the teacher"),
        ({"teacher": "TEACHER", "text.captions": "words"}, "--text.captions are none"),
        ({"teacher": "TEACHER,TEACHER"}, "names a model twice"),
        ({"teacher": "TEACHER", "distill.hints": 1, "compile": True}, "looks into the student's blocks"),
    ],
)
def test_contradictions_are_told(
    given: dict[str, Any], message: str, teacher: Run, settings: SETTINGS
) -> None:
    filled = {
        k: v.replace("TEACHER", str(teacher.path)) if isinstance(v, str) else v for k, v in given.items()
    }
    with pytest.raises(UserError, match=message):
        settings("run", **filled)
