"""Runs with adapters: their folder, 4-bit bases, resuming, merging, and what another process makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fresh
from warmstart import api
from warmstart.cli import main
from warmstart.config import io
from warmstart.config.schema import ModelConfig
from warmstart.engine import train
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.models.adapters.files import CONFIG, MANIFEST, WEIGHTS
from warmstart.models.build import build, metadata_for
from warmstart.run import layout
from warmstart.run.reader import Run

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("ant", "bee", "cat")
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
IN_ANOTHER_PROCESS = """
import sys, torch
from warmstart.inference.restore import restore
torch.manual_seed(99)
torch.set_num_threads(1)
images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
with torch.no_grad():
    torch.save(restore(sys.argv[1], torch.device("cpu")).built.module(images), sys.argv[2])
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT of other classes, as a file."""
    path = tmp_path_factory.mktemp("base") / "vit.safetensors"
    settings = ModelConfig(name="timm:test_vit", weights="none")
    built = build(settings, {"image_size": (32, 32)}, ("one", "two"), seed=5)
    save_file(built.module.state_dict(), path, metadata_for(built))
    return path


Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(overlapping: Path, base: Path, tmp_path: Path) -> Settings:
    def make(name: str = "run", **given: Any) -> dict[str, Any]:
        values = {
            "data": str(overlapping),
            "weights": str(base),
            "batch_size": 8,
            "train_ratio": 0.6,
            "val_ratio": 0.25,
            "lr": 0.01,
            "epochs": 2,
            "workers": 0,
            "device": "cpu",
            "tensorboard": False,
            "pictures": False,
            "augment": "none",
            "lora.rank": 4,
            "output_dir": str(tmp_path / name),
        }
        return {**values, **given}

    return make


@pytest.fixture
def tuned(settings: Settings) -> Callable[..., Run]:
    return lambda name="run", **given: Run(train.finetune(io.load(settings(name, **given))))


def logits(model: str | Path) -> torch.Tensor:
    with torch.no_grad():
        return restore(str(model), torch.device("cpu")).built.module(IMAGES)


def elsewhere(model: str | Path, tmp_path: Path) -> torch.Tensor:
    """The same in a fresh process under another seed."""
    out = tmp_path / "logits.pt"
    done = fresh.run(model, out, code=IN_ANOTHER_PROCESS)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_adapter_folder_is_a_model_wherever_weights_are_named(
    tuned: Callable[..., Run], overlapping: Path, settings: Settings, tmp_path: Path, caplog: Any
) -> None:
    run = tuned()
    folder = run.path / layout.ADAPTER
    assert sorted(path.name for path in folder.iterdir()) == sorted((WEIGHTS, CONFIG, MANIFEST))
    held = load_file(folder / WEIGHTS)
    assert all(".lora_" in name or name.startswith("base_model.model.head.") for name in held)
    best = load_file(run.checkpoint(run.pointer(layout.BEST) or 0) / layout.MODEL)
    assert torch.equal(held["base_model.model.head.weight"], best["head.weight"])
    moved = shutil.move(folder, tmp_path / "moved")  # it needs nothing of the run
    wanted = logits(run.path)
    close(logits(moved), wanted)
    close(elsewhere(moved, tmp_path), wanted)
    found = api.evaluate(str(moved), str(overlapping), split="all", device="cpu")
    assert found.num_samples == 42 and found.classes == CLASSES
    predicted = api.predict(str(moved), [str(overlapping / "ant")], device="cpu")
    assert predicted.to_json()["num_samples"] == 14
    child = tuned("child", weights=str(moved), epochs=1, **{"lora.rank": "none"})
    assert "lora" not in " ".join(load_file(child.checkpoint(0) / layout.MODEL))
    close(logits(f"{child.path}@0"), wanted)


def test_peft_loads_the_folder_of_a_run(tuned: Callable[..., Run], base: Path) -> None:
    from peft import PeftModel

    run = tuned(**{"lora.targets": "all-linear", "lora.kind": "rslora"})
    plain = build(ModelConfig(weights=str(base)), {}, CLASSES, seed=77).module  # its head is another new one
    loaded = PeftModel.from_pretrained(plain, str(run.path / layout.ADAPTER)).eval()
    with torch.no_grad():
        close(loaded(IMAGES), logits(run.path))


def test_show_names_the_adapter_folder(tuned: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(epochs=1)
    assert main(["show", str(run.path)]) == 0
    assert str(run.path / layout.ADAPTER) in capsys.readouterr().out


def test_another_base_is_refused_and_force_takes_it(
    tuned: Callable[..., Run], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.safetensors"
    shutil.copy(base, own)
    run = tuned(weights=str(own))
    folder = str(run.path / layout.ADAPTER)
    built = build(ModelConfig(weights=str(own)), {}, None, seed=0)
    state = built.module.state_dict()
    save_file({**state, "head.weight": state["head.weight"] + 1}, own, metadata_for(built))
    close(logits(folder), logits(run.path))  # the head is not the base's
    save_file({**state, "norm.weight": state["norm.weight"] + 1}, own, metadata_for(built))
    with pytest.raises(UserError, match=r"is not the base that the adapter .* was trained on") as raised:
        restore(folder, torch.device("cpu"))
    assert "--force" in str(raised.value) and "warmstart merge" in str(raised.value)
    assert main(["merge", folder]) == 2
    assert main(["merge", folder, "--force", "--to", str(tmp_path / "forced.safetensors")]) == 0
    assert "ANOTHER BASE" in capsys.readouterr().out
    assert main(["merge", folder, "--base", str(base), "--to", str(tmp_path / "right.safetensors")]) == 0
    close(logits(tmp_path / "right.safetensors"), logits(run.path))
    own.unlink()
    with pytest.raises(UserError, match="which is gone"):
        restore(folder, torch.device("cpu"))


def test_an_adapter_of_peft_goes_on_the_base_that_is_named(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = build(ModelConfig(weights=str(base)), {}, None, seed=0).module.eval()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])
    model = get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted = model(IMAGES)
    model.save_pretrained(str(tmp_path / "peft"))
    with pytest.raises(UserError, match="names no base"):
        restore(str(tmp_path / "peft"), torch.device("cpu"))
    assert main(["merge", str(tmp_path / "peft"), "--base", str(base)]) == 0
    close(logits(tmp_path / "peft-merged.safetensors"), wanted)
    named = json.loads((tmp_path / "peft" / CONFIG).read_text())
    (tmp_path / "peft" / CONFIG).write_text(json.dumps(named | {"base_model_name_or_path": str(base)}))
    close(logits(tmp_path / "peft"), wanted)


def test_a_merged_run_is_the_unmerged_one_in_a_fresh_process(
    tuned: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tuned()
    assert main(["merge", str(run.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == f"{run.path}-merged.safetensors" and told["difference"] < 1e-4
    assert told["same_answers"] == 1 and told["num_layers"] == 6 and told["errors"] == {}
    assert not [name for name in load_file(told["file"]) if ".lora_" in name]
    close(elsewhere(told["file"], tmp_path), elsewhere(run.path, tmp_path))
    assert restore(told["file"], torch.device("cpu")).built.classes == CLASSES
    assert main(["merge", str(run.path)]) == 2 and "exists already" in capsys.readouterr().err
    assert main(["merge", told["file"], "--to", str(tmp_path / "again.safetensors")]) == 2
    assert "no adapters to merge" in capsys.readouterr().err


def test_qlora_trains_on_a_base_in_4_bits(
    tuned: Callable[..., Run], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.pt"
    run = tuned(epochs=4, save_as=str(plain), **{"lora.bits": 4, "lora.targets": "all-linear"})
    assert run.resolved["model"]["lora"]["bits"] == 4
    errors = run.resolved["model"]["quantisation_errors"]
    assert len(errors) == 24 and all(0.05 < error < 0.15 for error in errors.values())
    assert "24 layers in 4 bits" in (run.path / layout.LOG).read_text()
    steps = run.checkpoint_steps()
    first, last = (load_file(run.checkpoint(step) / layout.MODEL) for step in (steps[0], steps[-1]))
    stored = [name for name in first if ".weight_" in name]
    assert len(stored) == 6 * 24 and "blocks.0.attn.qkv.weight" not in first
    assert all(
        torch.equal(first[name], last[name]) for name in first if "lora_" not in name and "head" not in name
    )
    assert any(not torch.equal(first[name], last[name]) for name in first if "lora_B" in name)
    losses = [row["loss"] for row in run.metrics.rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    wanted = logits(run.path)
    assert torch.equal(elsewhere(run.path, tmp_path), wanted)
    saved = restore(str(plain), torch.device("cpu"), "timm:test_vit", {"image_size": (32, 32)}).built.module
    with torch.no_grad():
        close(saved(IMAGES), wanted)
    # On the base in floating point, which is put into 4 bits anew.
    close(logits(run.path / layout.ADAPTER), wanted)
    checked = api.check(str(run.path / layout.ADAPTER), run.resolved["data"]["path"], device="cpu")
    assert checked.num_parameters == sum(row["num_parameters"] for row in run.plan["rows"])
    assert main(["merge", str(run.path)]) == 0
    close(logits(f"{run.path}-merged.safetensors"), wanted)
    small = tmp_path / "small.safetensors"
    capsys.readouterr()
    assert main(["merge", str(run.path), "--bits", "4", "--to", str(small), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["errors"]) == 24 and 1e-4 < told["difference"] < told["largest_logit"]
    assert small.stat().st_size < 0.5 * Path(f"{run.path}-merged.safetensors").stat().st_size
    difference = float((logits(small) - wanted).abs().max())
    assert 1e-4 < difference < float(wanted.abs().max())


def test_qlora_resumes_to_the_bit(settings: Settings, interrupt_at: Callable[..., None]) -> None:
    lora = {"lora.bits": 4, "lora.targets": "all-linear", "lora.dropout": 0.1, "epochs": 3}
    whole = Run(train.finetune(io.load(settings("whole", **lora))))
    interrupt_at(4)
    with pytest.raises(Exception, match="interrupted at step 4"):
        train.finetune(io.load(settings("parts", **lora)))
    parts = Run(train.resume(settings("parts")["output_dir"], {}))
    one, other = (
        load_file(run.checkpoint(run.checkpoint_steps()[-1]) / layout.MODEL) for run in (whole, parts)
    )
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
    adapters = [load_file(run.path / layout.ADAPTER / WEIGHTS) for run in (whole, parts)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_a_run_that_goes_on_keeps_the_base_of_its_adapters(tuned: Callable[..., Run], base: Path) -> None:
    run = tuned(epochs=1)
    child = tuned("child", weights=str(run.path), epochs=1)
    manifests = [json.loads((each.path / layout.ADAPTER / MANIFEST).read_text()) for each in (run, child)]
    assert manifests[0]["base"] == manifests[1]["base"] and manifests[0]["base"]["path"] == str(base)
    close(logits(child.path / layout.ADAPTER), logits(child.path))


def test_bits_are_refused_where_they_quantise_nothing(settings: Settings) -> None:
    with pytest.raises(UserError, match="no adapted layer can be kept in 4 bits"):
        train.finetune(io.load(settings(**{"lora.bits": 4, "lora.targets": "patch_embed.proj"})))
    with pytest.raises(UserError, match=r"--lora\.bits"):
        train.finetune(io.load(settings(**{"lora.bits": 8})))
