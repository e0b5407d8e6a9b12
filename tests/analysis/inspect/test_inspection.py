"""What is in a checkpoint: of a run, and as other programs write it; what looks wrong; what differs between two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import warmstart as ws
from warmstart.analysis.inspect.blocks import block_changes, block_of
from warmstart.analysis.inspect.health import warnings_of
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.models.builtin.fashion_cnn import FashionCNN


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    net(torch.rand(8, 3, 12, 12))
    return net


def test_a_run_says_where_it_came_from_and_what_it_measured(small_run: Path, tmp_path: Path) -> None:
    found = ws.inspect(str(small_run))
    step = found.contents.step
    assert step is not None and found.contents.epochs == step / 6  # 48 images in batches of 8
    told = json.loads(json.dumps(found.to_json()))
    assert told["architecture"] == "builtin:fashion_cnn" and told["classes"] == ["cat", "dog", "owl"]
    assert told["metrics"]["test accuracy"] == pytest.approx(
        next(r["accuracy"] for r in rows(small_run) if r["split"] == "test" and r["step"] == step)
    )
    assert told["optimizer"]["keeps"]["exp_avg"] > 4 and told["scheduler"]["lr"] == 3e-3
    assert told["lineage"] == ["random"] and told["warnings"] == []
    numbers = [p.numel() for p in FashionCNN(3, 0.3).parameters()]
    assert told["num_parameters"] == sum(numbers)
    assert "lr 0.003" in found.text() or "optim.lr" in found.text()
    with pytest.raises(UserError):
        ws.inspect(str(tmp_path / "nothing.pt"))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]


def test_the_checkpoint_of_document_002_is_told_as_its_program_told_it(tmp_path: Path, capsys) -> None:
    """Row 2.07: epoch 92 (its 91 counts from 0), best and val F-Score."""
    module = FashionCNN(10, 0.3)
    optimizer = torch.optim.AdamW(module.parameters(), 8e-4)
    module(torch.rand(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 91,
        "model_state_dict": {f"module.{name}": tensor for name, tensor in module.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {"last_epoch": 91, "_last_lr": [1e-5]},
        "best_f_score": 0.688861,
        "val_f_score": 0.688861,
        "config": {"model": {"dropout": 0.15}, "lr": 8e-4},
    }
    torch.save(content, tmp_path / "best_model.pth")
    assert main(["inspect", str(tmp_path / "best_model.pth")]) == 0
    text = capsys.readouterr().out
    assert "epoch         92" in text and "best_f_score 0.688861" in text and "val_f_score 0.688861" in text
    assert (
        "architecture  builtin:fashion_cnn" in text and "lr [0.0008]" in text and "_last_lr [1e-05]" in text
    )
    assert "'dropout': 0.15" in text
    assert main(["inspect", str(tmp_path / "best_model.pth"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["optimizer"]["keeps"]["exp_avg_sq"] == len(list(module.parameters()))
    assert told["epochs"] == 92 and told["dtypes"] == {"float32": 26, "int64": 4}


def test_a_healthy_net_has_no_warning_and_each_fault_has_one() -> None:
    assert warnings_of(small_net().state_dict()) == []
    faults = {
        "NaN or infinite numbers in 1 tensors: 0.weight (1 of 108)": (
            "0.weight",
            lambda t: t[0, 0, 0].fill_(0),
        ),
        "all 0, in 1 layers: 2.weight (2 of 5)": ("2.weight", lambda t: t[:2].zero_()),
        "a norm multiplies by 0, in 1 norms: 3.weight (1 of 5)": ("3.weight", lambda t: t[0].zero_()),
        "a variance of about 0": ("1.running_var", lambda t: t[0].zero_()),
        "a variance above 1e+06": ("1.running_var", lambda t: t[0].fill_(1e9)),
        "a negative variance": ("1.running_var", lambda t: t[0].fill_(-1)),
        "never updated": ("1.num_batches_tracked", lambda t: t.zero_()),
    }
    for sentence, (name, spoil) in faults.items():
        state = {key: tensor.clone() for key, tensor in small_net().state_dict().items()}
        spoil(state[name])
        if sentence.startswith("NaN"):
            state[name][0, 0, 0, 0] = torch.nan
        (told,) = warnings_of(state)
        assert sentence in told


def test_an_average_is_stale_when_it_lags_and_useless_when_it_is_the_same() -> None:
    state = small_net().state_dict()
    near = {name: t * 1.01 if t.is_floating_point() else t for name, t in state.items()}
    far = {name: t * 1.5 if t.is_floating_point() else t for name, t in state.items()}
    assert warnings_of(state, near) == []
    assert "stale: 50% away" in warnings_of(state, far)[0]
    assert "nothing was averaged" in warnings_of(state, dict(state))[0]


def test_a_foreign_file_with_a_stale_average_is_warned_about(tmp_path: Path) -> None:
    state = FashionCNN(10, 0.3).state_dict()
    averaged = {f"module.{name}": tensor * 0.5 for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": averaged, "epoch": 3}, tmp_path / "x.pth.tar")
    found = ws.inspect(str(tmp_path / "x.pth.tar"))
    assert any("stale" in warning for warning in found.warnings) and found.contents.epochs == 4


def test_two_files_differ_where_they_differ(tmp_path: Path, capsys) -> None:
    state = FashionCNN(10, 0.3).state_dict()
    other = {name: tensor.clone() for name, tensor in state.items()}
    other["conv1.weight"] *= 1.1
    other["fc2.weight"] = torch.zeros(3, other["fc2.weight"].shape[1])
    other["extra.weight"] = other.pop("fc2.bias")
    torch.save(state, tmp_path / "a.pt")
    torch.save(other, tmp_path / "b.pt")
    assert main(["inspect", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    conv = next(row for row in told["blocks"] if row["name"] == "conv1")
    assert (
        conv["relative"] < 0.1 + 1e-6
        and conv["cosine"] == pytest.approx(1, abs=1e-2)
        and conv["num_equal"] == 1
    )
    assert told["missing"] == ["fc2.bias"] and told["new"] == ["extra.weight"] and not told["equal"]
    assert [row["name"] for row in told["reshaped"]] == ["fc2.weight"]
    found = ws.inspect(str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))
    assert "only in A: 1 tensors: fc2.bias" in found.text() and "conv1" in found.verdict
    shutil.copy(tmp_path / "a.pt", tmp_path / "c.pt")
    assert (
        ws.inspect(str(tmp_path / "a.pt"), str(tmp_path / "c.pt")).verdict
        == "the tensors are equal to the bit"
    )


def test_changes_are_those_of_vectors() -> None:
    first = {"a.weight": torch.tensor([3.0, 4.0]), "a.running_mean": torch.tensor([1.0])}
    second = {"a.weight": torch.tensor([4.0, 3.0]), "a.running_mean": torch.tensor([9.0])}
    (row,) = block_changes(first, second)
    assert (
        row.relative == pytest.approx(2**0.5 / 5)
        and row.cosine == pytest.approx(24 / 25)
        and row.largest == 1
    )
    assert (row.num_tensors, row.num_equal) == (2, 0)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.3.attn.qkv.weight", "blocks.3"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("conv1.weight", "conv1"),
    ],
)
def test_blocks_by_name(name: str, block: str) -> None:
    assert block_of(name) == block
