"""Document 000 on its own checkpoint and real images."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import warmstart as ws
from warmstart.cli import main

pytestmark = pytest.mark.shared


@pytest.fixture
def fashion(shared: Path) -> tuple[Path, Path]:
    return shared / "models" / "fashion_mnist" / "mnist_cnn3.pt", shared / "data" / "fashion900"


class PlainNetwork(nn.Module):
    """The document's network as its script writes it, independent of warmstart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 64, 5, padding=2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128)
        self.conv3, self.bn3 = nn.Conv2d(128, 256, 3, padding=1), nn.BatchNorm2d(256)
        self.fc1, self.bn_fc, self.fc2 = nn.Linear(256, 256), nn.BatchNorm1d(256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return F.log_softmax(self.fc2(F.relu(self.bn_fc(self.fc1(x)))), dim=1)


def test_evaluating_the_untouched_file_equals_plain_pytorch_exactly(
    fashion: tuple[Path, Path], tmp_path: Path
) -> None:
    weights, data = fashion
    found = ws.evaluate(str(weights), str(data), split="test", batch_size=64, output_dir=str(tmp_path / "e"))

    plain = PlainNetwork().eval()
    plain.load_state_dict(torch.load(weights, weights_only=True))
    raw = gzip.decompress((data / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = np.frombuffer(gzip.decompress((data / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 1, 28, 28)
    images = (pixels.float() / 255 - 0.1307) / 0.3081
    with torch.inference_mode():
        outputs = torch.cat([plain(part) for part in images.split(64)]).numpy()
    assert found.metrics["accuracy"] == float((outputs.argmax(1) == labels).mean())
    assert np.array_equal(found.outputs.argmax(1), outputs.argmax(1))
    log_probabilities = torch.from_numpy(found.outputs).log_softmax(dim=1).numpy()
    assert np.array_equal(log_probabilities, outputs), "the same arithmetic gives the same bits"
    names = {path.name for path in (tmp_path / "e").iterdir()}
    assert names == {
        "evaluation_results.json",
        "evaluation_report.txt",
        "mistakes.csv",
        "mistakes.png",
        "mislabelled.csv",
        "mislabelled.png",
        "confusion.csv",
        "confusion_matrix.png",
        "class_performance.png",
        "calibration.png",
        "predictions.parquet",
    }


def test_the_documents_command_with_json(
    fashion: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = fashion
    run, saved = tmp_path / "run", tmp_path / "out" / "mnist_cnn_finetuned.pt"
    words = f"finetune --model-path={weights} --data {data} --batch-size=256 --epochs=2 --freeze-conv"
    code = main([*words.split(), "--output-dir", str(run), f"--save-model-dir={saved.parent}", "--json"])
    out, err = capsys.readouterr()
    assert code == 0
    result = json.loads(out)
    assert set(result) >= {"run", "metrics", "num_samples", "gains"}
    assert result["run"] == str(run) and result["num_samples"] == 300
    assert "--freeze-conv is --freeze conv*" in err

    before, after = torch.load(weights, weights_only=True), torch.load(saved, weights_only=True)
    assert list(before) == list(after), "the source's key names, in their order"
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == name.startswith(("fc", "bn_fc")), name

    plan = json.loads((run / "plan.json").read_text())
    assert [row["mode"] for row in plan["rows"]] == ["frozen"] * 3 + ["full"] * 2
    assert [row["norms"] for row in plan["rows"]] == ["held"] * 3 + ["train", "-"]


def test_tuning_a_tuned_model_again_knows_the_first_rate_and_keeps_the_splits(
    fashion: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, data = fashion
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    common = {"max_steps": 2, "batch_size": 64, "limit": 100, "tensorboard": False, "pictures": False}
    scratch = {"model": "builtin:fashion_cnn", "weights": "none", "lr": 0.04, "rotation": 3}
    ws.finetune(data=str(data), output_dir=str(first), **scratch, **common)
    ws.finetune(str(first), str(data), preset="stage-1", output_dir=str(second), **common)
    ws.finetune(
        str(second), str(data), preset="stage-2", output_dir=str(third), seed=5, val_ratio=0.2, **common
    )
    info = ws.show(str(third))
    assert info["lr_rule"] == {"original_lr": 0.04, "low": 0.0004, "high": 0.0008, "lr": 0.0005}
    assert info["augment"]["settings"]["rotation"] == 3, "the parent's augmentation wins"
    assert info["model"]["head"]["kind"] == "kept"
    assert "the splits are those of" in caplog.text
    ids = [set(ws.evaluate(str(run), split="val").ids) for run in (first, third)]
    assert ids[0] == ids[1], "another seed does not test on what the parent was trained on"
    assert info["gains"][-1]["split"] == "test" and "verdict" in info["gains"][-1]
