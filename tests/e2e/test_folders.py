"""From a heap of real photographs to an answer: document 004's prepare, finetune, evaluate and predict."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from warmstart.cli import main
from warmstart.data.folders import find_images

NUM = 20  # of each class


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parents[3] / "shared" / "data" / "dogcat" / "train"
    if not source.is_dir():
        pytest.skip(f"needs the real data in {source}")
    root = tmp_path_factory.mktemp("photos") / "raw"
    for name in ("cat", "dog"):
        for number, photo in enumerate(find_images(source / name).images[:NUM]):
            target = root / "Images" / name / f"part{number % 3}" / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
    shutil.copytree(root / "Images" / "cat" / "part0", root / "Images" / "few")
    cut = root / "Images" / "dog" / "cut.jpg"
    cut.write_bytes(next((root / "Images" / "dog" / "part0").iterdir()).read_bytes()[:3000])
    return root


def test_the_documents_quick_start_runs_to_its_end(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """prepare makes all three splits, so that training lacks none; a checkpoint need not have been a best."""
    monkeypatch.chdir(tmp_path)
    prepare = (
        f"prepare folders {raw} --output_dir data/dogs --num_classes 2 --train_ratio .8 --validate --seed 42"
    )
    assert main(prepare.split()) == 0
    told = capsys.readouterr().out
    assert "dog/cut.jpg" in told and "next: warmstart finetune --data data/dogs" in told
    record = json.loads(Path("data/dogs/preparation.json").read_text())
    assert record["counts"] == {
        "train": {"cat": 16, "dog": 16},
        "val": {"cat": 2, "dog": 2},
        "test": {"cat": 2, "dog": 2},
    }
    assert [name for name, _ in record["unreadable"]] == ["Images/dog/cut.jpg"]
    with Path("data/dogs/origins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(Path("data/dogs", r["file"]).read_bytes() == (raw / r["origin"]).read_bytes() for r in rows)

    train = "finetune data/dogs --model builtin:fashion_cnn --weights none --image-size 32 --epochs 2 --batch-size 16"
    train = train.replace("finetune data/dogs", "finetune --data data/dogs")
    assert main(f"{train} --output-dir outputs/full_finetuning --workers 0 --device cpu".split()) == 0
    checkpoint = "--checkpoint outputs/full_finetuning/checkpoint-epoch-2"
    evaluate = f"evaluate {checkpoint} --data_dir data/dogs --split test --output_dir outputs/evaluation_full"
    assert main(evaluate.split()) == 0
    found = {path.name for path in Path("outputs/evaluation_full").iterdir()}
    for name in (
        "evaluation_report.txt",
        "evaluation_results.json",
        "confusion_matrix.png",
        "class_performance.png",
    ):
        assert name in found
    results = json.loads(Path("outputs/evaluation_full/evaluation_results.json").read_text())
    assert results["num_samples"] == 4 and {row["name"] for row in results["per_class"]} == {"cat", "dog"}
    capsys.readouterr()
    assert (
        main(
            f"predict {checkpoint} --image data/dogs/test/{Path(rows[-1]['file']).parts[1]} --top_k 5".split()
        )
        == 0
    )
    assert "ms per image" in capsys.readouterr().out
