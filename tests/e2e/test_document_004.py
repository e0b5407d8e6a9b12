"""Document 004's two YAML files, unchanged, on a small CLIP: only --model and --data are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from warmstart.cli import main
from warmstart.run.reader import Run

DOCUMENTS = Path(__file__).parents[1] / "config" / "documents"
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP with the twelve layers of the document's, and 16 numbers where it has 768."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {**TOWER, "num_hidden_layers": 12, "image_size": 32, "patch_size": 16}
    text = {**TOWER, "num_hidden_layers": 1, "vocab_size": 64}
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return f"hf:{folder}"


@pytest.fixture(autouse=True)
def _elsewhere(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(config: Path, clip: str, data: Path, *flags: str) -> Run:
    assert main(["finetune", "--config", str(config), "--model", clip, "--data", str(data), *flags]) == 0
    (folder,) = Path("outputs").iterdir()
    return Run(folder)


def rates(plan: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["lr"] for row in plan["rows"]}


def test_full_fine_tuning(clip: str, overlapping: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows 4.03, 4.08, 4.20 and 4.22. 33 training images: two batches of 16 and one of 1, so two steps an epoch."""
    found = run(DOCUMENTS / "004-full.yaml", clip, overlapping)
    told = capfd.readouterr().err
    assert "steps of 32 images (16 x 2)" in told
    assert "half precision is not used on cpu: computing in float32" in told
    assert "alias: data.pin_memory has no effect here: " in told
    assert found.path.name == "full_finetuning" and found.status["state"] == "finished"
    by_block = rates(found.plan)
    for number in range(12):
        assert by_block[f"vision_model.encoder.layers.{number}"] == pytest.approx(
            1e-5 * 0.95 ** (12 - number)
        )
    assert by_block["head"] == 1e-5


def test_layers_are_unfrozen_by_the_documents_names(clip: str, overlapping: Path, tmp_path: Path) -> None:
    """Row 4.09."""
    text = (DOCUMENTS / "004-full.yaml").read_text()
    config = tmp_path / "config.yaml"
    config.write_text(
        text.replace("enabled: false", "enabled: true").replace("num_epochs: 20", "num_epochs: 7")
    )
    found = run(config, clip, overlapping)
    blocks = [stage["blocks"] for stage in found.plan["stages"]]
    layers = "vision_model.encoder.layers"
    assert [stage["when"] for stage in found.plan["stages"]] == ["0", "2", "4", "6"]
    assert blocks[:3] == [["head"], [f"{layers}.11"], [f"{layers}.10"]]
    assert [f"{layers}.{number}" for number in range(10)] == [
        name for name in blocks[3] if name.startswith(layers)
    ]


def test_lora(clip: str, overlapping: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Row 4.23: rank 8 on two layers of 16 x 16 in each of twelve blocks, and the head."""
    found = run(DOCUMENTS / "004-lora.yaml", clip, overlapping)
    assert "alias: lora.r is lora.rank" in capfd.readouterr().err
    trained = [name for row in found.plan["rows"] for name in row["trainable"]]
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) == 12 * 2 * 2 and set(trained) - adapters == {"classifier.weight", "classifier.bias"}
    assert rates(found.plan)["head"] == 5e-4


@pytest.mark.parametrize("preset", ["clip-full", "clip-lora"])
def test_a_bare_preset_says_what_is_missing(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 4.03."""
    assert main(["finetune", "--preset", preset]) == 2
    assert "--data is missing" in capsys.readouterr().err


def test_precision_by_our_own_name_is_refused(
    clip: str, overlapping: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "finetune",
        "--model",
        clip,
        "--data",
        str(overlapping),
        "--precision",
        "bf16",
        "--device",
        "cpu",
    ]
    assert main(arguments) == 2
    assert "--precision bf16 needs a CUDA device" in capsys.readouterr().err
