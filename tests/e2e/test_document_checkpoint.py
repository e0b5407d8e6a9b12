"""A checkpoint folder as document 004's program writes it: CLIP, its classifier beside it, no names of classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import warmstart as ws
from warmstart.errors import UserError

NUM_CLASSES = 6


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, nn.Linear]:
    """The folder, and the two modules that are in it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    clip, head = transformers.CLIPModel(config).eval(), nn.Linear(32, NUM_CLASSES)
    folder = tmp_path_factory.mktemp("outputs") / "checkpoint-epoch-20"
    clip.save_pretrained(folder)
    torch.save(head.state_dict(), folder / "classifier.pt")
    torch.save({"epoch": 20, "optimizer_state_dict": {}}, folder / "training_state.pt")
    return folder, clip, head


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("dogs")
    for name in "abcdef"[:NUM_CLASSES]:
        for number in range(3):
            file = root / "test" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file)
    return root


def test_its_answers_are_those_of_the_program(
    program: tuple[Path, nn.Module, nn.Linear], dogs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Linear over the pooled class token, with CLIP's own mean and std, as the program has it."""
    folder, clip, head = program
    found = ws.evaluate(str(folder), str(dogs), output_dir=str(tmp_path / "out"))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(dogs / name))) for name in found.ids]) / 255
    with torch.inference_mode():
        expected = head(clip.vision_model(((pixels - mean) / std).permute(0, 3, 1, 2)).pooler_output)
    assert np.allclose(found.outputs, expected.numpy(), atol=1e-4)
    assert "its classifier is classifier.pt" in caplog.text
    assert "the weights name no classes; taken by order: output 0 as 'a'" in caplog.text


def test_without_names_the_answers_are_numbers(
    program: tuple[Path, nn.Module, nn.Linear], dogs: Path
) -> None:
    result = ws.predict(str(program[0]), [str(dogs / "test" / "a" / "0.png")], top_k=2)
    assert all(name.isdecimal() for name in result.predictions[0].classes)


def test_another_number_of_classes_and_another_layer_are_refused(
    program: tuple[Path, nn.Module, nn.Linear], dogs: Path, tmp_path: Path
) -> None:
    few = Path(shutil.copytree(dogs, tmp_path / "few"))
    shutil.rmtree(few / "test" / "f")
    with pytest.raises(UserError, match="the weights have 6 outputs without names, the data 5 classes"):
        ws.evaluate(str(program[0]), str(few))
    other = Path(shutil.copytree(program[0], tmp_path / "other"))
    torch.save({"weight": torch.zeros(3)}, other / "classifier.pt")
    with pytest.raises(UserError, match="is no linear classifier: it holds weight"):
        ws.evaluate(str(other), str(dogs))
