"""`export`: every format from a run, read again in a fresh process; a source back as it came; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import warmstart as ws
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import WeightsReference
from warmstart.inference.restore import Restored, restore
from warmstart.methods.export import parity
from warmstart.methods.export.card import own_text
from warmstart.methods.export.container import Container, with_classes
from warmstart.methods.export.export import write_graph
from warmstart.models.build import build, metadata_for
from warmstart.models.metadata import with_entries
from warmstart.models.weights import read_weights
from warmstart.records import Decision

pytestmark = pytest.mark.usefixtures("one_thread")
OLD = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.pt: half precision, wrapped, with a prefix, an average and an epoch; sharded: the same in two files."""
    root = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=len(OLD))
    state = {name: t.half() if t.is_floating_point() else t for name, t in module.state_dict().items()}
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    wrapped._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    average = {"ema": {name: tensor.clone() for name, tensor in state.items()}}
    torch.save({"epoch": 7, "state_dict": wrapped, **average, "classes": list(OLD)}, root / "source.pt")
    folder = root / "sharded"
    folder.mkdir()
    names = sorted(module.state_dict())
    parts = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for file, part in parts.items():
        save_file({name: module.state_dict()[name] for name in part}, folder / file, {"note": "kept"})
    where = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def finetune(foreign: Path, data: Path, weights: str, **more: Any) -> str:
    name = more.pop("name")
    settings = {
        "model": "timm:test_resnet",
        "weights": str(foreign / weights),
        "image_size": "32",
        "batch_size": 8,
    }
    settings |= {
        "max_steps": 2,
        "lr": 0.01,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
        "pictures": False,
    }
    settings |= {"train_ratio": 0.6, "val_ratio": 0.25, "output_dir": str(foreign / name), **more}
    return str(ws.finetune(data=str(data), **settings).run)


@pytest.fixture(scope="module")
def run(foreign: Path, overlapping: Path) -> str:
    """A head on a frozen backbone, from source.pt; cow and dog gave way to cat."""
    return finetune(foreign, overlapping, "source.pt", freeze="backbone", name="frozen")


@pytest.mark.parametrize("to", ["onnx", "hf"])  # test_onnx_file.py asks the other readers too
def test_every_format_answers_in_a_fresh_process(
    run: str, to: str, overlapping: Path, tmp_path: Path
) -> None:
    target = tmp_path / ("made.onnx" if to == "onnx" else "made")
    made = ws.export(run, to=to, output=str(target))
    assert made.parity.same == 1 and made.parity.difference <= 1e-5 * made.parity.largest_logit
    assert made.parity.num_images == 6 and "test of" in made.parity.images
    assert "decisions equal 100.00%" in made.text() and json.loads(json.dumps(made.to_json()))["to"] == to
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    if to == "onnx":
        ours, theirs = (ws.evaluate(model, data=str(overlapping)) for model in (run, str(target)))
        places = [theirs.ids.index(name) for name in ours.ids]  # of the run its own test split
        assert len(places) == 6 and len(theirs.ids) == 42
        np.testing.assert_allclose(theirs.outputs[places], ours.outputs, atol=1e-5)
        assert len(ws.predict(str(target), [str(overlapping / "ant")]).predictions) == 14
        with pytest.raises(UserError, match="is exported already"):
            ws.export(str(target), to="onnx")
    else:
        card = json.loads((target / "warmstart.json").read_text(encoding="utf-8"))
        assert made.parity.prepared_same is not None and made.parity.prepared_same >= 5 / 6
        assert "images prepared by the library: " in made.text()
        assert card["classes"] == ["ant", "bee", "cat"] and card["preprocessing"]["image_size"] == [32, 32]
    with pytest.raises(UserError, match="exists already"):
        ws.export(run, to=to, output=str(target))


def test_a_source_is_as_it_came_but_for_the_plan(run: str, foreign: Path, tmp_path: Path) -> None:
    made = ws.export(run, to="source", output=str(tmp_path / "back.pt"))
    assert made.change is not None
    assert made.change.changed == {"head": 2} and made.change.unchanged == 90
    assert (made.change.averages, made.change.others) == (92, 0)
    assert "module" not in str(made.change.reshaped) and "fc.weight 4x96 -> 3x96" in made.text()
    assert "source.pt named 4 other classes: the file names the model's" in made.text()
    before, after = (
        torch.load(path, weights_only=True) for path in (foreign / "source.pt", tmp_path / "back.pt")
    )
    assert list(after) == list(before) and after["epoch"] == 7 and after["classes"] == ["ant", "bee", "cat"]
    assert type(after["state_dict"]) is OrderedDict and after["state_dict"]._metadata == {"": {"version": 1}}
    assert list(after["state_dict"]) == list(before["state_dict"])
    for name, tensor in before["state_dict"].items():
        found, bare = after["state_dict"][name], name.removeprefix("module.")
        assert found.dtype == tensor.dtype
        assert ".fc." in name or torch.equal(found, tensor)
        assert torch.equal(after["ema"][bare], found)
    with (tmp_path / "back.pt.warmstart.json").open(encoding="utf-8") as stream:
        assert json.load(stream)["classes"] == ["ant", "bee", "cat"]


def test_shards_and_adapters_go_back_too(foreign: Path, overlapping: Path, tmp_path: Path) -> None:
    run = finetune(foreign, overlapping, "sharded", name="adapted", **{"lora.rank": 2})
    made = ws.export(run, to="source", output=str(tmp_path / "back"))
    assert made.change is not None and {"head"} < set(made.change.changed)
    names = {file.name for file in (tmp_path / "back").iterdir()}
    assert names == {"a.safetensors", "b.safetensors", "model.safetensors.index.json"}
    for name, kept in (("a.safetensors", "bn1.weight"), ("b.safetensors", "layer4.0.bn1.weight")):
        old, new = (load_file(root / name) for root in (foreign / "sharded", tmp_path / "back"))
        assert list(new) == list(old) and torch.equal(new[kept], old[kept])
        assert "fc.weight" not in new or new["fc.weight"].shape == (3, 96)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["weight_map"]["fc.weight"] == "a.safetensors"
    assert read_weights(tmp_path / "back").classes == ("ant", "bee", "cat"), "by the card beside the folder"
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes
        for name in set(index["weight_map"].values())
        for tensor in load_file(tmp_path / "back" / name).values()
    )


def test_a_file_of_ours_says_what_the_model_is_now(overlapping: Path, tmp_path: Path) -> None:
    """Trained on images of 24 px with another decision, and thresholds of its own; images of 16 px were never seen as
    they are."""
    old = build(
        ModelConfig(name="timm:test_resnet", weights="none"), {"image_size": (32, 32)}, ("ant", "bee"), 0
    )
    old = replace(old, decision=Decision("bee", 0.9))
    source = tmp_path / "mine.safetensors"
    state = {name: tensor.contiguous() for name, tensor in old.module.state_dict().items()}
    save_file(state, source, with_entries(metadata_for(old), {"native": "false"}))
    assert not restore(str(source), torch.device("cpu")).native
    data = tmp_path / "two"
    for name in old.classes:
        shutil.copytree(overlapping / name, data / name)
    made = {
        "image_size": "24",
        "mean": "0.25,0.25,0.25",
        "std": "0.5,0.5,0.5",
        "positive": "ant",
        "model": None,
    }
    run = finetune(tmp_path, data, source.name, name="again", **made)
    back = ws.export(run, to="source")
    write_graph(restore(run, torch.device("cpu")), tmp_path / "now.onnx")
    for path in (back.path, str(tmp_path / "now.onnx")):
        found = restore(path, torch.device("cpu"))
        assert found.built.preprocessing.image_size == (24, 24)
        assert found.built.preprocessing.mean == (0.25, 0.25, 0.25)
        assert found.native and found.built.decision == restore(run, torch.device("cpu")).built.decision
    assert found.built.decision is not None and found.built.decision.positive == "ant"
    assert Path(f"{back.path}.warmstart.json").is_file()
    Path(back.path).unlink()
    with pytest.raises(UserError, match=r"warmstart\.json exists already"):
        ws.export(run, to="source")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["a", "b"], ["x", "y", "z"]),
        (("a", "b"), ("x", "y", "z")),
        ({"a": 0, "b": 1}, {"x": 0, "y": 1, "z": 2}),
        ({"0": "a", "1": "b"}, {"0": "x", "1": "y", "2": "z"}),
        ({0: "a", 1: "b"}, {0: "x", 1: "y", 2: "z"}),
    ],
    ids=str,
)
def test_classes_are_named_as_they_were(before: Any, after: Any) -> None:
    told = Container({"f": {"names": before, "epoch": 1}}, {})
    made = with_classes(told, ("x", "y", "z"), "names", {})
    assert made is not None and made.content == {"f": {"names": after, "epoch": 1}}
    assert told.content["f"]["names"] == before
    settings = Container({"f": {"hyper_parameters": {"names": before, "lr": 1}}}, {})
    made = with_classes(settings, ("x", "y", "z"), "names", {})
    assert made is not None and made.content == {"f": {"hyper_parameters": {"names": after, "lr": 1}}}


def test_texts_of_safetensors_name_the_new_classes() -> None:
    texts = {"a": {"classes": '["a"]', "note": "kept"}, "b": None, "c": {"warmstart": "old", "note": "kept"}}
    made = with_classes(Container({}, texts), ("x", "y"), None, {"warmstart": "new"})
    assert made is not None
    assert made.texts == {
        "a": {"classes": '["x", "y"]', "note": "kept"},
        "b": None,
        "c": {"warmstart": "new", "note": "kept"},
    }
    assert with_classes(Container({}, {"b": None}), ("x", "y"), None, {"warmstart": "new"}) is None


def test_a_source_that_is_gone_or_another_is_refused(run: str, foreign: Path, tmp_path: Path) -> None:
    source, aside = foreign / "source.pt", tmp_path / "aside.pt"
    source.rename(aside)
    with pytest.raises(UserError, match=r"source\.pt is gone"):
        ws.export(run, to="source")
    torch.save({**torch.load(aside, weights_only=True), "epoch": 8}, source)
    with pytest.raises(UserError, match=r"source\.pt is another file than the run was started from"):
        ws.export(run, to="source")
    aside.replace(source)
    with pytest.raises(UserError, match="is a file, and nothing is known of where it came from"):
        ws.export(str(source), to="source", model_name="timm:test_resnet", image_size="32")


def test_other_answers_are_not_kept(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_ROUNDING", -1.0)
    with pytest.raises(UserError, match="gives other answers, and was not kept: 6 images of test of"):
        ws.export(run, to="onnx", output=str(tmp_path / "made.onnx"))
    assert not list(tmp_path.iterdir())


def test_half_precision_is_asked_for_decisions_too(tmp_path: Path) -> None:
    built = build(
        ModelConfig(name="timm:test_resnet", weights="none"), {"image_size": (32, 32)}, ("ant", "bee"), 0
    )
    built.module.eval()
    with torch.no_grad():
        built.module.fc.weight.zero_()
        built.module.fc.bias.copy_(torch.tensor([10.0, 10.01]))
    restored = Restored(built, WeightsReference(None), False)
    file = tmp_path / "m.safetensors"
    save_file(
        {name: t.contiguous() for name, t in built.module.state_dict().items()}, file, own_text(restored)
    )
    others = np.tile(np.float32([10.01, 10.0]), (3, 1))  # as near as half precision, and the other class
    probe = parity.Probe(np.zeros((3, 3, 32, 32), np.float32), "3 images", others)
    with pytest.raises(UserError, match=r"gives other answers, and was not kept: .*decisions equal 0\.00%"):
        parity.check_parity(restored, probe, "safetensors", file, {}, torch.float16)


def test_what_cannot_be_exported_is_said(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--to onxx\n.*\n.*onnx"):
        ws.export(run, to="onxx")
    with pytest.raises(UserError, match=r"a name that ends in \.onnx"):
        ws.export(run, to="onnx", output=str(tmp_path / "made.pt"))
