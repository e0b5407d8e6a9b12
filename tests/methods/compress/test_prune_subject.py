"""`warmstart compress --method prune` on runs: importances, features, curves, a search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import warmstart as ws
from warmstart.config.compress_section import CompressConfig
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.methods.compress.prune_subject import losses_of
from warmstart.methods.compress.subject import open_subject
from warmstart.models.recipe import RESIZE
from warmstart.run import layout
from warmstart.run.reader import Run

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": "cpu", "epochs": 0}


def points(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / layout.COMPRESSION).read_text())["points"]


def test_half_of_the_macs_go_and_the_rest_recovers(original: str, tmp_path: Path) -> None:
    result = ws.compress(
        original,
        method="prune",
        importance="taylor",
        epochs=1,
        calibration=12,
        device="cpu",
        output_dir=str(tmp_path / "o"),
    )
    whole, smaller = points(tmp_path / "o")
    assert 0.4 < smaller["cost"]["macs"] / whole["cost"]["macs"] <= 0.5
    assert smaller["cost"]["num_parameters"] < whole["cost"]["num_parameters"]
    built = restore(result.run, CPU).built
    assert built.recipe is not None and built.recipe.kinds == {RESIZE}
    assert "% of the MACs that were left went, in" in " ".join(smaller["notes"])
    assert ws.inspect(result.run).to_json()["edits"] == [RESIZE]
    recovered = tmp_path / "o" / "rounds" / "01"
    assert Run(recovered).status["state"] == "finished" and Run(recovered).status["step"] > 0


def test_features_are_selected_for_the_classifier(original: str, tmp_path: Path) -> None:
    result = ws.compress(original, scope="embedding", amount=0.75, output_dir=str(tmp_path / "o"), **QUICK)
    before, after = restore(original, CPU).built, restore(result.run, CPU).built
    heads = [built.module.get_submodule(built.head) for built in (before, after)]
    assert heads[1].in_features == heads[0].in_features / 4  # type: ignore[operator]
    assert heads[1].out_features == heads[0].out_features
    convolutions = [
        [
            (layer.in_channels, layer.out_channels)
            for layer in built.module.modules()
            if isinstance(layer, nn.Conv2d)
        ]
        for built in (before, after)
    ]
    assert convolutions[0] == convolutions[1]


def test_curves_are_measured_once_and_decide_what_each_block_loses(original: str, tmp_path: Path) -> None:
    out = tmp_path / "o"
    ws.compress(original, scope="block", sensitivity=True, amount=0.3, output_dir=str(out), **QUICK)
    found = json.loads((out / layout.SENSITIVITY).read_text())
    assert [len(curve["values"]) for curve in found["curves"]] == [3] * len(found["curves"])
    assert found["num_images"] == Run(Path(original)).resolved["data"]["sizes"]["val"]
    with Image.open(out / layout.SENSITIVITY_PLOT) as picture:
        assert picture.width > 500
    # Finished curves are read again, not measured again: these say that one block alone stands anything.
    found["curves"][1:] = [{**curve, "values": [0.0, 0.0, 0.0]} for curve in found["curves"][1:]]
    found["curves"][0] |= {"values": [found["whole"]] * 3}
    (out / layout.SENSITIVITY).write_text(json.dumps(found))
    (out / layout.COMPRESSION).unlink()
    for path in (out / "rounds").glob("01*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    result = ws.compress(original, scope="block", sensitivity=True, amount=0.3, output_dir=str(out), **QUICK)
    before, after = (
        dict(restore(model, CPU).built.module.named_parameters()) for model in (original, result.run)
    )
    first = found["curves"][0]["block"]
    lost = {name: 1 - len(after[name]) / len(before[name]) for name in before if name.endswith("weight")}
    assert max(lost, key=lambda name: lost[name]).startswith(first)


def test_a_search_goes_as_far_as_it_is_asked(original: str, tmp_path: Path) -> None:
    ws.compress(original, target_macs=0.6, step=0.25, max_drop="99%", output_dir=str(tmp_path / "a"), **QUICK)
    whole, *rounds = points(tmp_path / "a")
    assert [point["removed"] for point in rounds] == [0.25, 0.4]
    assert rounds[-1]["cost"]["macs"] <= 0.6 * whole["cost"]["macs"]
    result = ws.compress(
        original, target_macs=0.01, step=0.25, max_rounds=2, output_dir=str(tmp_path / "b"), **QUICK
    )
    assert "the best found, which does not meet --target-macs" in result.text()
    assert points(tmp_path / "b")[-1]["removed"] == 0.5


def test_what_cannot_be_pruned_is_refused(
    original: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for dry_run in (False, True):
        with pytest.raises(
            UserError, match=r"--layers head: .* is of the head, whose outputs are the answers"
        ):
            ws.compress(
                original, layers="head", device="cpu", output_dir=str(tmp_path / "o"), dry_run=dry_run
            )
    assert "of recovery" not in capsys.readouterr().err, "before any step was tried"
    with pytest.raises(UserError, match="--calibration 0: no training images"):
        ws.compress(original, importance="taylor", calibration=0, output_dir=str(tmp_path / "p"), **QUICK)
    with pytest.raises(UserError, match="--scope embedding with --method sparse"):
        ws.compress(original, method="sparse", scope="embedding", output_dir=str(tmp_path / "q"), **QUICK)
    with pytest.raises(
        UserError, match=r"0.98 of the MACs cannot be removed at once: the channels that may go"
    ):
        ws.compress(original, amount=0.98, output_dir=str(tmp_path / "r"), **QUICK)


def test_masks_have_losses_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for number in range(6):
            mask = np.zeros((32, 32), np.uint8)
            mask[:, int(rng.integers(8, 24)) :] = 1
            pixels = (mask[..., None] * 120 + rng.integers(0, 100, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{number}.png")
    result = ws.finetune(
        model="builtin:microsegformer", data=str(tmp_path / "data"), weights="none", image_size="32", epochs=1,
        batch_size=4, mask_classes="a,b", device="cpu", workers=0, tensorboard=False, pictures=False,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    subject = open_subject(str(result.run), CompressConfig(importance="taylor"), CPU)
    with torch.no_grad():
        found = [loss(subject.built.module).item() for loss in losses_of(subject)]
    assert len(found) == 1 and 0.1 < found[0] < 3
    smaller = ws.compress(
        str(result.run), importance="taylor", amount=0.3, output_dir=str(tmp_path / "o"), **QUICK
    )
    assert smaller.points[1].cost.macs < 0.71 * smaller.points[0].cost.macs
