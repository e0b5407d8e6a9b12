"""Runs on data of every form: groups, tables in folders, saved data sets, torchvision's sets, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fresh
import warmstart as ws
from warmstart.run import layout, reader

SMALL = {
    "weights": "none",
    "image_size": 16,
    "batch_size": 16,
    "epochs": 1,
    "tensorboard": False,
    "pictures": False,
    "augment": "none",
    "device": "cpu",
}
MODEL = "builtin:fashion_cnn"


@pytest.fixture
def bursts(tmp_path: Path) -> Path:
    """Two classes of 20 bursts of two pictures: a/burst07_0.png, a/burst07_1.png."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "bursts" / label).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 256, (16, 16), np.uint8)
            name = f"burst{number // 2:02d}_{number % 2}.png"
            Image.fromarray(pixels).save(tmp_path / "bursts" / label / name)
    return tmp_path / "bursts"


def test_a_run_keeps_its_groups_and_hands_them_on(bursts: Path, tmp_path: Path) -> None:
    group = "^(./burst[0-9]+)"
    parent = ws.finetune(MODEL, str(bursts), group=group, output_dir=str(tmp_path / "one"), **SMALL)
    assert reader.open_run(parent.run).resolved["data"]["split"]["group"] == group
    settings = SMALL | {"weights": None, "seed": 3}
    child = ws.finetune(parent.run, str(bursts), output_dir=str(tmp_path / "two"), **settings)
    splits = [reader.open_run(run.run).resolved["data"]["split"] for run in (parent, child)]
    assert splits[0] == splits[1]
    evaluated = [
        ws.evaluate(run.run, output_dir=str(tmp_path / f"out{run.run[-1]}")) for run in (parent, child)
    ]
    assert evaluated[0].num_samples == evaluated[1].num_samples == parent.num_samples
    assert parent.num_samples % 2 == 0
    (tmp_path / "one" / layout.STATUS).unlink()
    assert ws.resume(parent.run).metrics == parent.metrics


def arrays(num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Dark and bright images of two classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % 2
    noise = rng.integers(0, 100, (num, 16, 16), dtype=np.uint8)
    return (noise + labels[:, None, None].astype(np.uint8) * 120).astype(np.uint8), labels


def test_arrays_train_resume_and_evaluate(tmp_path: Path) -> None:
    images, labels = arrays()
    settings = SMALL | {"epochs": 2, "save_every": "1steps", "output_dir": str(tmp_path / "one")}
    run = ws.finetune(MODEL, (images, labels), **settings)
    place = reader.open_run(run.run).resolved["data"]["path"]
    assert place.startswith("memory:")
    assert ws.evaluate(run.run).num_samples == ws.evaluate(run.run, (images, labels)).num_samples == 6
    assert ws.evaluate(run.run, (images[:20], labels[:20])).num_samples == 20
    assert ws.check(run.run, (images, labels)).num_samples > 0
    with pytest.raises(ws.UserError, match=r"was started on memory:.*, not on memory:"):
        ws.resume(run.run, data=(images[:20], labels[:20]))
    (tmp_path / "one" / layout.STATUS).unlink()
    assert ws.resume(run.run, data=(images, labels)).metrics == run.metrics


def test_arrays_are_gone_in_another_process(tmp_path: Path) -> None:
    run = ws.finetune(MODEL, arrays(), output_dir=str(tmp_path / "one"), **SMALL).run
    code = f"import warmstart as ws; ws.evaluate({run!r})"
    done = fresh.run(code=code, folder=tmp_path)
    assert "the data were arrays in memory, and this program does not have them" in done.stderr


def test_a_set_of_torchvision_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, level in (("Forest", 30), ("River", 200)):
        (tmp_path / "sets" / "eurosat" / "2750" / label).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (16, 16), (level + number, 0, 0))
            image.save(tmp_path / "sets" / "eurosat" / "2750" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    run = ws.finetune(MODEL, "torchvision:EuroSAT@sets", runs_dir="runs", **SMALL).run
    assert Path(run).name.startswith("EuroSAT-fashion_cnn-")
    assert reader.open_run(run).resolved["data"]["path"] == f"torchvision:EuroSAT@{tmp_path / 'sets'}"
    assert "path: torchvision:EuroSAT@sets" in Path(ws.init("torchvision:EuroSAT@sets")).read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ws.evaluate(str(tmp_path / run)).num_samples == 4


def test_images_of_five_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, level in (("a", 0), ("b", 100)):
        (tmp_path / "cube" / label).mkdir(parents=True)
        for number in range(20):
            cube = rng.integers(level, level + 100, (40, 36, 5)).astype(np.uint8)
            np.save(tmp_path / "cube" / label / f"{number}.npy", cube)
    settings = SMALL | {"image_size": 32, "augment": "light"}
    five = {"mean": ".4,.4,.4,.4,.4", "std": ".2,.2,.2,.2,.2"}
    with pytest.raises(ws.UserError, match="the images have 5 channels, the model takes 3"):
        ws.finetune("timm:resnet10t", str(tmp_path / "cube"), output_dir=str(tmp_path / "no"), **settings)
    run = ws.finetune(
        "timm:resnet10t", str(tmp_path / "cube"), output_dir=str(tmp_path / "run"), **settings, **five
    ).run
    assert ws.evaluate(run).num_samples == 4
    assert len(ws.predict(run, [str(tmp_path / "cube" / "a" / "0.npy")]).to_json()["predictions"]) == 1
    with pytest.raises(ws.UserError, match=r"colour\.png: 3 channels, and the model takes 5"):
        image = tmp_path / "colour.png"
        Image.new("RGB", (40, 36)).save(image)
        ws.predict(run, [str(image)])


def test_groups_of_a_column_are_kept_by_a_child_and_an_evaluation(bursts: Path, tmp_path: Path) -> None:
    paths = sorted(bursts.rglob("*.png"))
    rows = [f"{path.relative_to(bursts)},{path.parent.name},{path.stem[:7]}" for path in paths]
    table = bursts / "labels.csv"
    table.write_text("\n".join(["path,label,burst", *rows]))
    parent = ws.finetune(MODEL, str(table), group="burst", output_dir=str(tmp_path / "one"), **SMALL)
    settings = SMALL | {"weights": None, "seed": 3}
    child = ws.finetune(parent.run, str(bursts), output_dir=str(tmp_path / "two"), **settings)
    splits = [reader.open_run(run.run).resolved["data"]["split"] for run in (parent, child)]
    assert splits[0] == splits[1] and splits[0]["group"] == "burst"
    assert ws.evaluate(parent.run, str(table)).num_samples == parent.num_samples
    (tmp_path / "one" / layout.STATUS).unlink()
    table.write_text("\n".join(["path,label,burst", *(f"{row}{n}" for n, row in enumerate(rows))]))
    before = reader.open_run(parent.run).splits
    assert ws.resume(parent.run).num_samples == parent.num_samples, "who is where was recorded"
    assert reader.open_run(parent.run).splits == before
    (tmp_path / "one" / layout.STATUS).unlink()
    (tmp_path / "one" / layout.SPLITS).unlink()  # a run of a version that recorded only the seed
    with pytest.raises(ws.UserError, match="have changed since the run was started"):
        ws.resume(parent.run)
