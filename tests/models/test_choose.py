"""Several checkpoints: the best by manifests, names or runs; never the newest; two equals are refused."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from warmstart.config.rules import problems
from warmstart.config.schema import Config
from warmstart.errors import UserError
from warmstart.inference.reference import resolve_weights
from warmstart.models.choose import checkpoints_in, choose
from warmstart.models.weights import read_weights


def touch(folder: Path, *names: str) -> list[Path]:
    """Files in this order of age, the last the newest."""
    paths = [folder / name for name in names]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1_700_000_000 + age, 1_700_000_000 + age))
    return paths


def chosen(folder: Path) -> tuple[str, str]:
    choice = choose(checkpoints_in(folder), "here")
    return choice.path.name, " ".join(choice.notes)


@pytest.mark.parametrize(
    ("names", "best", "why"),
    [
        (
            ["epoch=3-val_acc=0.88.ckpt", "epoch=12-val_acc=0.91.ckpt", "last.ckpt"],
            1,
            "val_acc 0.91 in its name (more",
        ),
        (
            ["epoch=3-val_loss=0.31.ckpt", "epoch=9-val_loss=0.48.ckpt"],
            0,
            "val_loss 0.31 in its name (less is better)",
        ),
        (
            ["epoch=3-val_loss=0.31-val_acc=0.80.ckpt", "epoch=9-val_loss=0.48-val_acc=0.83.ckpt"],
            1,
            "val_acc 0.83",
        ),
        (["checkpoint_acc1_92.30.pth", "checkpoint_acc1_91.40.pth"], 0, "acc1 92.3 in"),
        (["acc@1=91.5.pt", "acc@1=93.5.pt"], 1, "acc@1 93.5 in"),
        (["acc1_90.0_acc5_99.0.pt", "acc1_91.0_acc5_98.0.pt"], 1, "acc1 91 in"),
        (["mAP50_0.71.pt", "mAP50_0.62.pt"], 0, "map50 0.71 in"),
        (["mAP50-95_0.41.pt", "mAP50-95_0.52.pt"], 1, "map50-95 0.52 in"),
        (["acc91.pt", "acc1.0.pt"], 0, "acc 91 in"),
        (
            ["epoch=1-train_acc=0.99-val_acc=0.5.ckpt", "epoch=2-train_acc=0.9-val_acc=0.6.ckpt"],
            1,
            "val_acc 0.6",
        ),
        (
            ["ocec_epoch_0004.pt", "ocec_best_epoch0004_f1_0.9321.pt", "ocec_best_epoch0007_f1_0.9290.pt"],
            1,
            "f1 0.9321",
        ),
        (["best_model.pth", "last_model.pth"], 0, "its name says best"),
        (["checkpoint-1.pth.tar", "checkpoint-2.pth.tar", "model_best.pth.tar"], 2, "its name says best"),
        (["best.pt", "last.pt"], 0, "its name says best"),
        (["net_0.9312.pth", "net_0.9280.pth"], 0, "the number at the end of its name (more is better)"),
        (["top1_71.2.pth", "top1_70.9.pth"], 0, "top1 71.2"),
        (["acc=1.pth", "acc=0.97.pth"], 0, "acc 1 "),
        (["epoch=1-val_acc=0.91.ckpt", "epoch=1-val_acc=0.92-v1.ckpt"], 1, "val_acc 0.92"),
    ],
)
def test_names(names: list[str], best: int, why: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    name, note = chosen(tmp_path)
    assert name == names[best] and why in note
    assert f"took {name}, the best of {len(names)} in here: " in note


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_acc=0.9.pt", "b_acc=0.90.pt"], "the same best acc 0.9: a_acc=0.9.pt and b_acc=0.90.pt"),
        (["a.pt", "b.pt"], "holds 2 files of weights: a.pt, b.pt; nothing tells which is the best"),
        (["a_acc=0.9.pt", "b_loss=0.2.pt"], "name different metrics: acc, loss"),
        (["best_a.pt", "best_b.pt"], "nothing tells which is the best"),
        (["step_100.pt", "step_200.pt"], "nothing tells"),
        (["epoch_1.2.pt", "epoch_2.pt"], "nothing tells"),
    ],
)
def test_what_cannot_be_told_is_refused(names: list[str], message: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message) as caught:
        chosen(tmp_path)
    assert "--weights" in caught.value.fix


def test_a_newer_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "acc=0.91.pt", "acc=0.85.pt")
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        chosen(tmp_path)
    assert "acc=0.85.pt is newer than acc=0.91.pt, which was taken as the best" in caplog.text
    caplog.clear()
    touch(tmp_path, "acc=0.85.pt", "acc=0.91.pt")
    chosen(tmp_path)
    assert not caplog.text


def test_hugging_faces_manifest(tmp_path: Path) -> None:
    for step in (500, 1000):
        touch(
            tmp_path / f"checkpoint-{step}",
            "model.safetensors",
            "optimizer.pt",
            "rng_state.pth",
            "training_args.bin",
        )
        state: dict[str, Any] = {"global_step": step, "best_metric": 0.87}
        state["best_model_checkpoint"] = "C:\\out\\checkpoint-500"
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    save_file({"w": torch.ones(2)}, tmp_path / "checkpoint-500" / "model.safetensors")
    read = read_weights(tmp_path)
    assert read.path == tmp_path / "checkpoint-500" / "model.safetensors"
    assert read.notes[0].endswith("trainer_state.json names it as best (0.87)")
    (tmp_path / "checkpoint-1000" / "trainer_state.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_weights(tmp_path)


def test_timms_table(tmp_path: Path) -> None:
    touch(tmp_path, *(f"checkpoint-{epoch}.pth.tar" for epoch in (3, 4, 5)), "last.pth.tar")
    (tmp_path / "summary.csv").write_text(
        "epoch,train_loss,eval_loss,eval_top1\n3,1,2,70.5\n4,1,1.9,71.5\n5,1,1.8,71.25\n"
    )
    assert chosen(tmp_path) == (
        "checkpoint-4.pth.tar",
        "took checkpoint-4.pth.tar, the best of 4 in here: eval_top1 71.5 in summary.csv (more is better)",
    )


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    touch(tmp_path, "checkpoint-1.pth.tar", "checkpoint-2.pth.tar")
    (tmp_path / "summary.csv").write_bytes(b"epoch,eval_top1\n1,\xff\n2,50\n")
    with pytest.raises(UserError, match=r"summary\.csv is not a table in UTF-8"):
        chosen(tmp_path)


def test_globs_and_the_rules(tmp_path: Path) -> None:
    for name in ("a_acc=0.9", "b_acc=0.8"):
        (tmp_path / name).mkdir()
        torch.save({"w": torch.ones(1)}, tmp_path / name / f"{name}.pth")
    pattern = str(tmp_path / "*" / "*.pth")
    assert read_weights(pattern).path.name == "a_acc=0.9.pth"
    assert resolve_weights(pattern).file == pattern
    with pytest.raises(UserError, match="there is no file"):
        read_weights(str(tmp_path / "*" / "*.pt"))

    def complaints(weights: str) -> list[str]:
        config = Config.model_validate({"data": {"path": str(tmp_path)}, "model": {"weights": weights}})
        return [str(problem) for problem in problems(config, {})]

    assert complaints(pattern) == []
    assert "does not exist" in complaints(pattern + "x")[0]


def test_a_folder_of_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    import warmstart as ws

    for name, level in (("ant", 60), ("bee", 190)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (16, 16), level + number).save(tmp_path / "data" / name / f"{number}.png")
    common: dict[str, Any] = {
        "model": "builtin:fashion_cnn",
        "image_size": "16",
        "workers": 0,
        "tensorboard": False,
        "pictures": False,
    }
    common |= {
        "runs_dir": str(tmp_path / "runs"),
        "select_by": "loss",
        "device": "cpu",
        "val_ratio": 0.25,
        "train_ratio": 0.6,
    }
    for name, lr in (("slow", 1e-9), ("good", 1e-3)):
        ws.finetune(data=str(tmp_path / "data"), weights="none", name=name, lr=lr, epochs=3, **common)
    with caplog.at_level(logging.INFO, logger="warmstart"):
        found = resolve_weights(str(tmp_path / "runs"))
    assert found.run is not None and found.run.path.name == "good"
    assert "took good, the best of 2 in" in caplog.text and "val loss" in caplog.text
    good = tmp_path / "runs" / "good"
    for file in good.glob("checkpoints/step_*/model.safetensors"):
        inside = resolve_weights(str(file))
        assert inside.file == str(file) and inside.run is not None and inside.run.path == good
        assert file.parent.name == f"step_{inside.step:08d}"
        monkeypatch.chdir(file.parent)
        assert resolve_weights(file.name).step == inside.step
    assert resolve_weights(str(tmp_path / "runs" / "s*")).run.path.name == "slow"  # type: ignore[union-attr]
    assert resolve_weights(str(tmp_path / "runs" / "good@last")).run.path.name == "good"  # type: ignore[union-attr]
