"""int8: candidates after training, training for it, and what ONNX Runtime makes of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantised_models import built_of, images, plain, put_on_grids
from warmstart import api
from warmstart.errors import UserError
from warmstart.inference.onnx_model import open_onnx
from warmstart.inference.restore import restore
from warmstart.methods.compress import graphs
from warmstart.methods.compress.static_int8 import Form, grids_in, quantise_static
from warmstart.methods.export.integers import in_integers
from warmstart.methods.export.onnx_file import write_onnx
from warmstart.models.quantised import channel_scales, quantised_layers
from warmstart.run.reader import Run

CPU = torch.device("cpu")


def test_integers_compute_what_the_layers_do() -> None:
    module, given = plain(), images(8, 16)
    put_on_grids(module, given)
    weight, levels = module.first.weight.detach(), module.first.levels
    signs = module.norm.weight.sign().view(-1, 1, 1, 1)
    with torch.no_grad():
        wanted = module(given)
        in_integers(module)
        found = module(given)
    assert not quantised_layers(module)
    whole = (weight / channel_scales(weight, levels).view(-1, 1, 1, 1)).round()
    assert torch.equal(module.first.integers.float(), whole * signs)
    assert module.first.bias.dtype == torch.int32
    step = float((wanted.max() - wanted.min()) / 255)
    apart = (found - wanted).abs()
    assert apart.max() < 4 * step  # a number between two steps falls to either side, here and there
    assert (apart > step / 2).float().mean() < 0.1


def test_onnx_runtime_computes_the_layers_in_integers(tmp_path: Path) -> None:
    module, given, file = plain(), images(8, 16), tmp_path / "model.onnx"
    recipe = put_on_grids(module, given, ("last",))
    write_onnx(built_of(module, recipe, 16), file)
    with torch.no_grad():
        wanted = module(given)
        found = open_onnx(file).module(given)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    grids = grids_in(file)
    whole = {name: grid for name, grid in grids.items() if grid["type"] == "int8"}
    assert sorted(np.size(grid["scale"]) for grid in whole.values()) == [6, 6, 6, 8]
    assert sum(grid["type"] == "uint8" for grid in grids.values()) == 4 + 3
    assert str(Path.home()) not in file.read_bytes().decode(errors="replace")


def test_int8_after_training(original: str, tmp_path: Path) -> None:
    made = api.compress(
        original, method="int8", output_dir=str(tmp_path / "out"), device="cpu", calibration=20
    )
    folder = Path(made.run)
    names = [point.name for point in made.points]
    assert names[:2] == ["original", "fp32, ONNX Runtime"]
    assert len(names) == 6
    best = max(made.points[2:], key=lambda point: point.value)
    assert made.points[made.chosen].value == best.value
    assert made.points[1].value == made.points[0].value
    assert made.points[2].cost.num_bytes < 0.4 * made.points[1].cost.num_bytes
    # The run has the weights as they were; the graph answers as the table says, by itself.
    before, after = (restore(model, CPU).built.module.state_dict() for model in (original, made.run))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    graph = api.evaluate(str(folder / graphs.INT8), data=Run(folder).resolved["data"]["path"], split="all")
    assert graph.metrics["accuracy"] > 0.6
    grids = json.loads((folder / graphs.GRIDS).read_text(encoding="utf-8"))
    assert {grid["type"] for grid in grids.values()} >= {"uint8", "int8"}
    assert made.test is not None
    assert graphs.INT8 in made.text()


def test_training_for_int8_goes_on_and_leaves_a_graph(original: str, tmp_path: Path) -> None:
    made = api.compress(
        original,
        method="qat",
        epochs=1,
        lr=1e-3,
        output_dir=str(tmp_path / "out"),
        device="cpu",
        calibration=20,
    )
    assert [point.name for point in made.points] == ["original", "round 1", "int8, ONNX Runtime"]
    torch_point, graph = made.points[1:]
    assert abs(graph.value - torch_point.value) < 0.15  # one image of eight
    assert "fresh process" in graph.notes[0]
    built = restore(made.run, CPU).built
    assert len(quantised_layers(built.module)) == 4
    record = Run(Path(made.run)).resolved
    tuned = api.finetune(
        made.run, record["data"]["path"], epochs=1, lr=1e-3, device="cpu", output_dir=str(tmp_path / "tuned"),
        tensorboard=False, pictures=False, image_size="16", batch_size=8,
    )  # fmt: skip
    after = restore(tuned.run, CPU).built
    assert after.recipe == built.recipe
    assert torch.equal(
        after.module.state_dict()["conv1.input_grid"], built.module.state_dict()["conv1.input_grid"]
    )
    with pytest.raises(UserError, match="computes in int8 already"):
        api.compress(made.run, method="factorise", device="cpu", output_dir=str(tmp_path / "again"))


class Mixed(nn.Module):
    """What torch makes of this compares whole numbers with floats, which ONNX Runtime does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) * float(x.detach().numpy().std() > 0)
        return self.head(x.mean((2, 3)))


def test_a_graph_that_is_not_run_is_told_of(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    data, module = {split: (pixels, np.arange(12) % 2) for split in ("train", "val")}, Mixed()
    run = api.finetune(
        module, data, image_size="8", max_steps=1, device="cpu", tensorboard=False, pictures=False,
        output_dir=str(tmp_path / "run"),
    ).run  # fmt: skip
    with pytest.raises(UserError, match="cannot be opened: "):
        api.compress(run, method="int8", module=module, device="cpu", output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_to_calibrate_on_is_refused(original: str, tmp_path: Path) -> None:
    for method in ("int8", "qat"):
        with pytest.raises(UserError, match="--calibration 0"):
            api.compress(
                original, method=method, calibration=0, device="cpu", output_dir=str(tmp_path / method)
            )


def test_as_many_images_are_announced_as_there_are(
    original: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.compress(original, method="int8", device="cpu", dry_run=True, output_dir=str(tmp_path / "out"))
    num = Run(Path(original)).resolved["data"]["sizes"]["train"]
    assert f"nothing is trained: {num} training images are seen" in capsys.readouterr().err


def test_forms_differ_in_their_scales(tmp_path: Path) -> None:
    module, given = plain(), images(8, 16)
    write_onnx(built_of(module, None, 16), tmp_path / "float.onnx")
    found = {}
    for form, file in quantise_static(
        tmp_path / "float.onnx", [given], tmp_path, (Form(True, True), Form(False, False))
    ):
        weights = [grid for grid in grids_in(file).values() if grid["type"] == "int8"]
        found[form.name] = [np.size(grid["scale"]) for grid in weights]
        assert open_onnx(file).classes == ("a", "b", "c")
    assert sorted(found) == ["per channel, 7 bits", "per tensor, 8 bits"]
    assert max(found["per channel, 7 bits"]) == 8
    assert set(found["per tensor, 8 bits"]) == {1}
