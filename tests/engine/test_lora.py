"""Runs with adapters: what moves, what is written, resumed to the bit, continued, merged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from warmstart import api
from warmstart.engine import train
from warmstart.engine.adapter_probe import check_adapters
from warmstart.errors import Interrupted, UserError
from warmstart.inference.restore import restore
from warmstart.models import objects
from warmstart.models.adapters.inject import without_adapters
from warmstart.models.adapters.plain import plain_state
from warmstart.run import layout
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]
SETTINGS = Callable[..., Any]
CPU = torch.device("cpu")


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / layout.MODEL)


def outputs(run: str, merged: bool = False) -> torch.Tensor:
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = restore(run, CPU, merged=merged).built.module(images)
    return found


def val_loss(run: Run, step: int) -> float:
    return next(
        row["loss"]
        for row in run.evals.rows
        if row["split"] == "val" and row["step"] == step and "kind" not in row
    )


def test_only_adapters_and_the_head_move(finetune: FINETUNE, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run = finetune(keep_checkpoints=9, **{"lora.rank": 4})
    first, last = weights(run, 0), weights(run, 6)
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    rows = {row["name"]: row for row in run.plan["rows"]}
    assert [row["mode"] for row in rows.values()] == ["lora", "lora", "lora", "lora", "full"]
    assert moved == {name for row in rows.values() for name in row["trainable"]}
    assert {name for name in moved if "lora_" not in name} == set(rows["head"]["trainable"])
    assert {row["norms"] for row in rows.values()} <= {"held", "-"} and "running_mean" in str(first.keys())
    num = sum(first[name].numel() for name in moved)
    assert num == sum(row["num_trainable"] for row in rows.values())
    total = sum(row["num_parameters"] for row in rows.values())
    assert f"plan: {num:,} of {total:,} parameters train ({num / total:.2%})" in caplog.text
    assert run.resolved["model"]["lora"] == {
        "kind": "lora",
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "targets": [name.removesuffix(".lora_A.weight") for name in run_adapters(rows)],
        "bits": None,
    }


def run_adapters(rows: dict[str, Any]) -> list[str]:
    return [name for row in rows.values() for name in row["trainable"] if name.endswith("lora_A.weight")]


def test_a_run_restores_from_its_directory_alone_and_merges(finetune: FINETUNE, tmp_path: Path) -> None:
    run = finetune(**{"lora.rank": 4, "save_as": str(tmp_path / "plain.pt")})
    best = run.pointer(layout.BEST)
    assert best is not None
    own, plain = outputs(str(run.path)), outputs(str(run.path), merged=True)
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)
    assert api.evaluate(str(run.path), split="val").metrics["loss"] == pytest.approx(
        val_loss(run, best), rel=1e-6
    )
    bare = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert list(bare) == list(restore(str(run.path), CPU, merged=True).built.module.state_dict())
    merged = plain_state(run.checkpoint(best) / layout.MODEL)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in bare.items())


@pytest.mark.parametrize(
    "lora",
    [
        {"lora.rank": 4, "lora.dropout": 0.3},
        {"lora.rank": 2, "lora.kind": "dora", "ema": 0.5},
        {"lora.rank": 2, "lora.targets": "fc1,conv2", "unfreeze": "0:head,1:all", "layer_decay": 0.5},
        {"lora.rank": 2, "lora.targets": "fc1", "feature_cache": "on", "augment": "none"},
    ],
    ids=["dropout", "dora-ema", "stages", "features"],
)
def test_resume_is_to_the_bit(lora: dict[str, Any], settings: SETTINGS, interrupt_at: Any) -> None:
    straight = Run(train.finetune(settings("straight", **lora)))
    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("stopped", **lora))
    stopped = Run(train.resume(str(straight.path.parent / "stopped"), {}))
    for folder in (straight, stopped):
        assert folder.status["state"] == "finished"
    one, other = (weights(run, 6) for run in (straight, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("builtin:fashion_cnn", "fc1"),
        ("timm:vit_tiny_patch16_224", "blocks.11.*"),
        ("timm:resnet10t", "layer4.*"),
    ],
)
def test_a_prefix_without_adapters_is_computed_once(model: str, targets: str, finetune: FINETUNE) -> None:
    """The cut lies in front of the first block with adapters, and the run is the same to rounding."""
    size = 16 if model.startswith("builtin") else 32
    given = {"lora.rank": 2, "lora.targets": targets, "augment": "none", "model": model, "image_size": size}
    kept = finetune("kept", feature_cache="on", **given)
    whole = finetune("whole", feature_cache="off", **given)
    assert kept.resolved["features"]["cut"] is not None and whole.resolved["features"]["cut"] is None
    assert val_loss(kept, 6) == pytest.approx(val_loss(whole, 6), rel=1e-4)


def test_more_epochs_are_the_longer_run(finetune: FINETUNE, tmp_path: Path) -> None:
    given = {"lora.rank": 2, "scheduler": "none"}
    longer, short = finetune("longer", epochs=3, **given), finetune("short", epochs=2, **given)
    api.continue_run(f"{short.path}@6", epochs=3, output_dir=str(tmp_path / "child"))
    child = Run(tmp_path / "child")
    one, other = weights(longer, 9), weights(child, 9)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_other_adapters_cannot_keep_the_state_and_merge_with_keep_weights(
    finetune: FINETUNE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = finetune("parent", **{"lora.rank": 2})
    for keep in ("all", "optimizer"):
        with pytest.raises(
            UserError, match=rf"--keep {keep}: .*\(lora, rank 2.*at 4 layers \(conv1, .*\(lora, rank 4"
        ):
            api.continue_run(
                str(parent.path), keep=keep, epochs=3, output_dir=str(tmp_path / "no"), **{"lora.rank": 4}
            )
    with caplog.at_level(logging.INFO):
        api.continue_run(
            f"{parent.path}@6",
            keep="weights",
            epochs=1,
            output_dir=str(tmp_path / "child"),
            **{"lora.rank": 4},
        )
    assert "merged the adapters of 4 layers into the weights" in caplog.text
    child = Run(tmp_path / "child")
    assert val_loss(child, 0) == pytest.approx(val_loss(parent, 6), rel=1e-4)
    base, adapters = without_adapters(weights(child, 0))
    merged = plain_state(parent.checkpoint(6) / layout.MODEL)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in base.items())
    assert all(not tensor.any() for name, tensor in adapters.items() if "lora_B" in name)


def test_the_same_adapters_go_on_with_keep_weights(finetune: FINETUNE, tmp_path: Path) -> None:
    parent = finetune("parent", **{"lora.rank": 2})
    api.continue_run(f"{parent.path}@6", keep="weights", epochs=1, output_dir=str(tmp_path / "child"))
    assert "goes on with the adapters of 4 layers" in (tmp_path / "child" / layout.LOG).read_text()
    one, other = weights(parent, 6), weights(Run(tmp_path / "child"), 0)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_full_tuning_from_adapters_begins_with_them_merged(finetune: FINETUNE) -> None:
    parent = finetune("parent", **{"lora.rank": 2})
    child = finetune("child", model=None, weights=f"{parent.path}@6", epochs=1)
    assert not any("lora_" in name for name in weights(child, 0))
    assert val_loss(child, 0) == pytest.approx(val_loss(parent, 6), rel=1e-4)
    assert {row["mode"] for row in child.plan["rows"]} == {"full"}


def test_a_blend_is_of_merged_weights(finetune: FINETUNE, tmp_path: Path) -> None:
    start = finetune("start")
    tuned = finetune("tuned", model=None, weights=f"{start.path}@6", **{"lora.rank": 2})
    result = api.blend(
        [f"{start.path}@6", str(tuned.path)], alphas=[0, 0.5, 1], output_dir=str(tmp_path / "mix")
    )
    last = result.blended.points[-1]
    assert last.alpha == 1
    assert last.val["loss"] == pytest.approx(val_loss(tuned, tuned.pointer(layout.BEST) or 0), rel=1e-4)
    assert not any("lora_" in name for name in weights(Run(tmp_path / "mix"), 0))


def test_answers_can_be_held_on_to(finetune: FINETUNE, data: Path, tmp_path: Path) -> None:
    """LwF: the start model is the base alone, as fresh adapters change nothing."""
    start = finetune("start")
    shutil.copytree(data, tmp_path / "other")
    for picture in (tmp_path / "other").rglob("*.png"):
        Image.open(picture).point(lambda value: value // 2).save(picture)
    given = {"weights": f"{start.path}@6", "retain": str(tmp_path / "other"), "lora.rank": 2}
    run = finetune("run", model=None, **given, **{"retain.lwf": 1.0})
    assert all(row["lwf"] >= 0 for row in run.metrics.rows if row["kind"] == "train")
    assert val_loss(run, 0) == pytest.approx(val_loss(start, 6), rel=1e-5)
    plain = finetune("plain", model=None, **given)
    assert any(not torch.equal(t, weights(plain, 6)[name]) for name, t in weights(run, 6).items())


def test_what_adapters_cannot_be_combined_with_is_refused_or_told(
    settings: SETTINGS, finetune: FINETUNE, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"lora.rank": 2, "retain": str(tmp_path)}
    for name in ("l2sp", "ewc"):
        with pytest.raises(UserError, match=rf"(?s)--retain\.{name} holds weights near .* --retain\.lwf"):
            settings(**{**given, f"retain.{name}": 1.0})
    with caplog.at_level(logging.WARNING):
        finetune("bn", epochs=1, freeze_bn=True, **{"lora.rank": 2, "lora.targets": "fc1"})
    assert "--freeze-bn has no effect: --lora.rank holds all norms" in caplog.text
    assert "no layer of conv1, conv2" in caplog.text


class Detached(torch.nn.Module):
    """A convolution, a linear layer of whose output nothing leads back, one that does, BatchNorm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 4, 4)
        self.aside = torch.nn.Linear(8, 8)
        self.middle = torch.nn.Linear(8, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).mean((2, 3))
        x = x + self.aside(x).detach() + self.drop(self.middle(x))
        return self.head(self.norm(x))


def test_an_adapter_without_a_gradient_is_refused_before_the_run(settings: SETTINGS, tmp_path: Path) -> None:
    given = {"model": objects.keep(Detached(), (32, 32)), "image_size": 32, "weights": None, "lora.rank": 2}
    with pytest.raises(UserError, match=r"(?m)1 adapters would learn nothing.*: aside$") as refusal:
        train.finetune(settings("no", **given))
    assert refusal.value.fix == "--lora.targets without aside" and not (tmp_path / "no").exists()
    job = train.dry_run(settings("yes", **given, **{"lora.targets": "stem,middle"}))[0].job
    assert not [note for note in job.plan.notes if "gradient" in note]
    module = job.built.module.train()
    before, random = {name: t.clone() for name, t in module.state_dict().items()}, torch.get_rng_state()
    assert check_adapters(job) == () and module.training and module.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(tensor.any() for name, tensor in before.items() if "lora_B" in name)
    assert not before["norm.running_mean"].any()


class Scaled(Detached):
    """The same, where a scale of zero stands before the adapter that is refused, and does not explain it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).mean((2, 3))
        return self.head(x + self.scale * self.middle(x) + self.aside(x).detach())


def test_a_scale_of_zero_excuses_only_what_it_silences(settings: SETTINGS) -> None:
    given = {"model": objects.keep(Scaled(), (32, 32)), "image_size": 32, "weights": None, "lora.rank": 2}
    with pytest.raises(UserError, match=r"(?m)1 adapters would learn nothing.*: aside$"):
        train.finetune(settings("no", **given))
    job = train.dry_run(settings("yes", **given, **{"lora.targets": "stem,middle"}))[0].job
    assert [note for note in job.plan.notes if "gradient" in note] == [
        "1 adapters have no gradient as long as scale is zero, which multiplies what they give: middle"
    ]


def test_adapters_behind_a_scale_of_zero_are_a_note_of_the_plan(finetune: FINETUNE) -> None:
    """timm makes the last norm of every residual branch zero in a ResNet without weights."""
    run = finetune(model="timm:resnet18", image_size=32, epochs=1, **{"lora.rank": 2})
    notes = [note for note in run.plan["notes"] if "is zero" in note]
    assert len(notes) == 8 and notes[0] == (
        "2 adapters have no gradient as long as layer1.0.bn2.weight is zero, which multiplies what they give: "
        "layer1.0.conv1, layer1.0.conv2"
    )
