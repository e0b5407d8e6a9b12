"""`explain` end to end: the page, what it says of a run, a planted patch, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import warmstart as ws
from warmstart.analysis.explain.explain import explain
from warmstart.analysis.explain.result import METHODS, Request
from warmstart.arguments import restore_model
from warmstart.cli import main
from warmstart.errors import UserError
from warmstart.inference.predictions import read_predictions
from warmstart.run import reader

PNG = b"\x89PNG"


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, so that what is written into it disturbs nobody."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def test_all_that_applies_to_a_run(run: Path) -> None:
    first, *_, last = reader.open_run(run).checkpoint_steps()
    found = ws.explain(f"{run}@{last}", limit=9, start=f"{run}@{first}", split="val,test")
    folder = run / "explanations" / f"val+test@{last}"
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{name}.png" for name in ("maps", "filters", "activations", "embedding", "cka")}
    assert names == pictures | {"explain.html", "explain.json", "embedding.csv", "cka.csv"}
    assert all((folder / name).read_bytes().startswith(PNG) for name in pictures)
    assert found.left_out == ("rollout: builtin:fashion_cnn has no attention",)
    record = json.loads((folder / "explain.json").read_text())
    assert record == json.loads(json.dumps(found.to_json()))
    assert record["layer"] == {"path": "bn3", "places": "4 x 4 places"}
    assert [row["block"] for row in record["blocks"]] == ["conv1", "conv2", "conv3", "fc1"]
    moved = [row["weights_moved"] for row in record["blocks"]]
    assert min(moved) > 0
    page = (folder / "explain.html").read_text(encoding="utf-8")
    assert page.count('class="card ') == len(record["images"]) and 'src="data:image/png' in page
    assert "maps of bn3, 4 x 4 places" in found.text()
    with pytest.raises(UserError, match=r"was started from random weights"):
        ws.explain(str(run), method="cka", output=str(run / "other"))


def test_a_second_call_replaces_the_first_and_a_failure_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(ws.explain(str(run), method="filters,embedding", projection="pca").folder)
    assert {path.name for path in folder.iterdir()} == {
        *("explain.html", "explain.json", "filters.png", "embedding.png", "embedding.csv")
    }
    with pytest.raises(UserError, match="was started from random weights"):
        ws.explain(str(run), method="embedding,cka", projection="pca", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and (folder / "filters.png").exists()
    ws.explain(str(run), method="activations")
    assert {path.name for path in folder.iterdir()} == {"explain.html", "explain.json", "activations.png"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ws.explain(str(run), method="filters", output=".").folder == "."
    assert (tmp_path / "here" / "explain.html").exists(), "an empty folder is filled, also this one"


def test_what_it_says_of_an_image_is_what_evaluate_says(run: Path, tmp_path: Path) -> None:
    ws.evaluate(str(run), split="test", output_dir=str(tmp_path / "evaluation"))
    known = read_predictions(tmp_path / "evaluation" / "predictions.parquet")
    found = ws.explain(str(run), method="grad-cam,embedding", projection="pca")
    assert found.layer is not None and len(found.looks) >= 2
    by_id = dict(zip(known.ids, range(len(known.ids)), strict=True))
    for look in found.looks:
        row = by_id[look.id]
        scores = known.scores[row]
        assert known.classes[int(scores.argmax())] == look.case.answer
        assert known.classes[int(known.targets[row])] == look.case.label
        assert look.case.score == pytest.approx(scores.max(), abs=1e-6)
        assert (look.case.group == "right") == (look.case.answer == look.case.label)
    with (Path(found.folder) / "embedding.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = known.scores.argmax(axis=1) == known.targets
    assert [row["id"] for row in rows] == list(known.ids) and set(rows[0]) == {
        "id",
        "class",
        "right",
        "pca_x",
        "pca_y",
    }
    assert [row["right"] == "1" for row in rows] == right.tolist()


def test_images_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for number, shade in enumerate((20, 220)):
        pictures.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 30), (shade,) * 3).save(pictures[-1])
    code = main(["explain", str(run), *map(str, pictures), "--output", str(tmp_path / "out"), "--json"])
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert [image["id"] for image in record["images"]] == [str(path) for path in pictures]
    assert all(len(image["maps"]) == 2 and image["label"] is None for image in record["images"])
    assert any(reason.startswith("embedding: the images have no labels") for reason in record["left_out"])
    assert (tmp_path / "out" / "maps.png").exists() and not (tmp_path / "out" / "embedding.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_name": "cta"}, "(?s)no such class.*Did you mean 'cat'"),
        ({"method": "gradcam"}, "(?s)--method gradcam is not known.*Did you mean 'grad-cam'"),
        ({"method": "rollout"}, "rollout: builtin:fashion_cnn has no attention"),
        ({"method": "grad-cam,rollout"}, "rollout: builtin:fashion_cnn has no attention"),
        ({"method": "filters,"}, "an empty name in 'filters,'"),
        ({"layer": "conv9"}, "(?s)--layer conv9: the model has no such layer"),
        ({"layer": "fc1", "method": "grad-cam"}, r"(?s)--layer fc1 gives \(256,\): no map.*for example bn3"),
        ({"layer": "conv1", "method": "cka"}, "--layer has no effect with --method cka"),
        ({"class_name": "cat", "method": "rollout"}, "--class-name has no effect"),
        ({"start": "x", "method": "filters"}, "--start has no effect"),
        ({"projection": "mds"}, "--projection mds is not known"),
        ({"split": "validation"}, "no such split"),
        ({"images": ["x.png"], "split": "val"}, "--split beside images"),
        ({"images": ["nowhere.png"]}, "nowhere.png"),
        ({"output": "."}, "--output . is in use"),
        ({"start": "nowhere.pt", "method": "cka"}, "nowhere.pt"),
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
    ],
)
def test_bad_input(run: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ws.explain(str(run), **settings)
    assert not (run / "explanations").exists() or not any((run / "explanations").rglob("*.html"))


def test_a_split_without_images_of_the_class(
    run: Path, pictures: Callable[..., None], tmp_path: Path
) -> None:
    pictures(tmp_path / "other", {"cat": 3, "dog": 3})
    with pytest.raises(UserError, match=r"(?s)no image of the class owl among these 6.*another --class-name"):
        ws.explain(str(run), data=str(tmp_path / "other"), class_name="owl", output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    only = ws.explain(
        str(run),
        data=str(tmp_path / "other"),
        class_name="cat",
        method="grad-cam",
        output=str(tmp_path / "out"),
    )
    assert {look.case.label for look in only.looks} == {"cat"} and len(only.looks) == 3
    assert {heat.name for look in only.looks for heat in look.heats} == {"cat"}


def test_a_bare_file_needs_an_output_and_knows_no_start(run: Path, tmp_path: Path) -> None:
    file = str(reader.model_file(str(run))[2])
    moved = shutil.copy(file, tmp_path / "model.safetensors")
    data = reader.open_run(run).resolved["data"]["path"]
    with pytest.raises(UserError, match="--output is missing"):
        ws.explain(str(moved), data=data)
    with pytest.raises(UserError, match="says not what it was tuned from"):
        ws.explain(str(moved), data=data, method="cka", output=str(tmp_path / "out"))
    found = ws.explain(str(moved), data=data, method="cka", start=str(run), output=str(tmp_path / "out2"))
    assert [row["cka"] for row in found.charts[0].rows] == pytest.approx([1.0] * 4)
    assert [row["weights_moved"] for row in found.charts[0].rows] == [0.0] * 4


def test_another_architecture_is_no_start(run: Path, tmp_path: Path) -> None:
    other = build_file(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds weights of builtin:ocec"):
        ws.explain(str(run), method="cka", start=other)


def build_file(path: Path) -> str:
    from safetensors.torch import save_file

    from warmstart.config.schema import ModelConfig
    from warmstart.models.build import build, metadata_for

    built = build(ModelConfig(name="ocec", weights="none"), {}, ("a", "b"), 0)
    save_file(built.module.state_dict(), path, metadata=metadata_for(built))
    return str(path)


class PatchNet(nn.Module):
    """Two convolutions and a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


def planted(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of 32 px with a patch of 8 px somewhere: checked (0) or striped (1), and as bright on the whole."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (num, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, num)
    y, x = np.mgrid[:8, :8]
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(0, 25, 2)
        pattern = (x // 2 + y // 2) % 2 if label == 0 else x // 2 % 2
        image[top : top + 8, left : left + 8] = (130 + 125 * pattern)[..., None]
    return images, labels


def share_of_hits(looks: Any) -> float:
    """How often the hottest place lies in the patch, or within two pixels of it (Zhang et al. 2016)."""
    hits = 0
    for look in looks:
        rows, columns = np.nonzero((look.image >= 130).all(axis=2))
        x, y = (share * 32 for share in look.heats[0].peak)
        hits += columns.min() - 2 <= x <= columns.max() + 3 and rows.min() - 2 <= y <= rows.max() + 3
    return hits / len(looks)


def test_maps_point_at_a_planted_patch_and_not_when_weights_are_random(tmp_path: Path) -> None:
    """One draw of random weights: the patch is bright, so that some others find it too (the guide has the numbers)."""
    torch.manual_seed(0)
    net = PatchNet()
    data = {"train": planted(320, 0), "val": planted(64, 1), "test": planted(48, 2)}
    done = ws.finetune(
        net, data, epochs=8, batch_size=32, lr=5e-3, augment="none", workers=0, image_size=32,
        output_dir=str(tmp_path / "run"), tensorboard=False, pictures=False,
    )  # fmt: skip
    assert done.metrics["accuracy"] > 0.95
    restored, _ = restore_model(done.run, "cpu", {"module": net}, merged=True)
    request = Request(methods=("grad-cam",), num=48, output=str(tmp_path / "trained"))
    found = explain(restored, request)
    assert found.layer is not None and found.layer.layout.num_places == 256
    assert share_of_hits(found.looks) > 0.85
    torch.manual_seed(1)
    for module in restored.built.module.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    again = explain(restored, Request(methods=("grad-cam",), num=48, output=str(tmp_path / "random")))
    assert share_of_hits(again.looks) < 0.6
    assert all(
        not np.allclose(one.heats[0].values, other.heats[0].values)
        for one in found.looks
        for other in again.looks
        if one.id == other.id
    )


def test_a_class_of_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 4), ("test", 4)):
        for name in range(number):
            mask = np.zeros((32, 48), np.uint8)
            mask[:, int(rng.integers(16, 32)) :] = 1
            pixels = rng.integers(0, 60, (32, 48, 3)) + np.array([[20, 0, 150], [150, 0, 20]])[mask]
            for kind, array in (("images", pixels.astype(np.uint8)), ("masks", mask)):
                (tmp_path / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "data" / split / kind / f"{name}.png")
    done = ws.finetune(
        "builtin:microsegformer", str(tmp_path / "data"), weights="none", image_size="32x48", mask_classes="left,right",
        epochs=1, batch_size=4, workers=0, augment="none", output_dir=str(tmp_path / "run"),
        tensorboard=False, pictures=False,
    )  # fmt: skip
    found = ws.explain(done.run, class_name="right", num=4)
    assert found.layer is not None and found.layer.layout.num_places == 2
    assert {look.case.label for look in found.looks} == {"right"}
    for look in found.looks:
        region = look.heats[0].region
        assert region is not None and region.shape == (32, 48) and region.any()
        assert (look.case.answer == "right") == (look.case.group == "right")
    assert [path.name for path in found.pictures] == ["maps.png", "filters.png", "activations.png", "cka.png"]
    rollout, embedding = found.left_out
    assert rollout.startswith("rollout: ") and embedding == "an embedding map of 4 images"
    given = ws.explain(
        done.run,
        [str(tmp_path / "data" / "test" / "images")],
        method="grad-cam",
        output=str(tmp_path / "given"),
    )
    assert len(given.looks) == 4 and all(1 <= len(look.heats) <= 2 for look in given.looks)
    blind, _ = restore_model(done.run, "cpu", {})
    with torch.no_grad():
        blind.built.module.get_submodule(blind.built.head).bias.copy_(torch.tensor([99.0, 0.0]))
    request = Request(methods=("grad-cam",), only="right", output=str(tmp_path / "blind"))
    for look in explain(blind, request).looks:
        mask = look.image[..., 0] > look.image[..., 2]
        assert look.heats[0].missed and "missed, mask: right" in look.heats[0].words
        assert look.case.title == "right → left; IoU of right 0.00"
        assert look.heats[0].region is not None and (look.heats[0].region == mask).mean() > 0.9


def test_sets_of_labels_have_colours_of_their_own(tmp_path: Path) -> None:
    """No label and several are two things."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1)).astype(np.uint8)
    labels = np.array([[0, 0], [1, 0], [0, 1], [1, 1]] * 3, np.uint8)
    run = ws.finetune(
        "builtin:fashion_cnn", {"train": (pixels, labels), "val": (pixels, labels)}, weights="none",
        image_size="16", max_steps=1, device="cpu", tensorboard=False, pictures=False,
        output_dir=str(tmp_path / "run"),
    ).run  # fmt: skip
    found = ws.explain(
        run,
        data={"val": (pixels, labels)},
        method="embedding",
        projection="pca",
        output=str(tmp_path / "out"),
    )
    with (Path(found.folder) / "embedding.csv").open() as file:
        names = [row["class"] for row in csv.DictReader(file)]
    assert names == ["no label", "0", "1", "several labels"] * 3


def test_adapters_are_merged_first(small_run: Path, tmp_path: Path) -> None:
    """With its adapters a model has the same answers as merged, so the maps are the same to rounding."""
    data = reader.open_run(small_run).resolved["data"]["path"]
    tuned = ws.finetune(
        weights=str(small_run), data=data, epochs=1, workers=0, device="cpu", tensorboard=False, pictures=False,
        output_dir=str(tmp_path / "run"), **{"lora.rank": 2, "lora.targets": "all-linear"},
    )  # fmt: skip
    merged, _ = restore_model(tuned.run, "cpu", {}, merged=True)
    whole, _ = restore_model(tuned.run, "cpu", {})
    assert merged.built.lora is None and whole.built.lora is not None
    looks = [
        explain(each, Request(methods=("grad-cam",), num=3, output=str(tmp_path / name))).looks
        for name, each in (("merged", merged), ("whole", whole))
    ]
    for one, other in zip(*looks, strict=True):
        np.testing.assert_allclose(one.heats[0].values, other.heats[0].values, rtol=1e-3, atol=1e-6)


def test_every_method_has_a_name_in_the_help() -> None:
    from warmstart.flags import explain_flags

    text = next(flag.help for flag in explain_flags() if flag.name == "method")
    assert all(name in text for name in METHODS)


def test_what_has_no_layers_is_refused(run: Path, tmp_path: Path) -> None:
    restored, _ = restore_model(str(run), "cpu", {})
    without = replace(restored, built=replace(restored.built, blocks=()))
    with pytest.raises(UserError, match="has no layers that can be looked into"):
        explain(without, Request(output=str(tmp_path / "out")))


def test_outputs_that_are_not_finite_are_refused(run: Path, tmp_path: Path) -> None:
    restored, _ = restore_model(str(run), "cpu", {})
    with torch.no_grad():
        restored.built.module.fc2.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="gives outputs that are not finite"):
        explain(restored, Request(output=str(tmp_path / "out")))
