from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import resolve_weights
from warmstart.models.build import build
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.models.weights import load_into, read_weights


class Payload:
    """Unpickling this would create a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    metadata = {
        "arch": "resnet18",
        "classes": '["a", "b"]',
        "mean": "[0.5]",
        "image_size": "64",
        "crop_pct": "0.9",
    }
    file = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(2)}, file, metadata)
    read = read_weights(file)
    assert torch.equal(read.state["w"], torch.ones(2)) and read.shapes == {"w": (2,)}
    assert (read.arch, read.classes) == ("timm:resnet18", ("a", "b"))
    assert read.preprocessing == {"mean": (0.5,), "image_size": (64, 64), "crop_pct": 0.9}
    assert read.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("48x64", (48, 64)), ("[3, 48, 64]", (48, 64))])
def test_forms_of_image_size(text: str, size: tuple[int, int], tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", {"image_size": text})
    assert read_weights(tmp_path / "m.safetensors").preprocessing == {"image_size": size}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("classes", "cat, dog"),
        ("classes", "[1, 2]"),
        ("classes", '["a", "a"]'),
        ("mean", "0.5"),
        ("std", '["x"]'),
        ("image_size", "big"),
        ("image_size", "-4"),
        ("crop_pct", "2"),
    ],
)
def test_broken_metadata_is_named(key: str, text: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", {key: text})
    with pytest.raises(UserError, match=f"has {key} = "):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_bare_state_dicts(suffix: str, tmp_path: Path) -> None:
    torch.save(FashionCNN().state_dict(), tmp_path / f"m{suffix}")
    read = read_weights(tmp_path / f"m{suffix}")
    assert load_into(FashionCNN(), read.state, "fc2", "m").has_head
    assert read.classes is None and read.arch == "builtin:fashion_cnn" and read.preprocessing == {}


def test_missing_file_names_the_closest(tmp_path: Path) -> None:
    (tmp_path / "mnist_cnn3.pt").touch()
    with pytest.raises(
        UserError, match=r"there is no file .*mnist_cnn.pt[\s\S]*Did you mean 'mnist_cnn3.pt'"
    ):
        read_weights(tmp_path / "mnist_cnn.pt")
    with pytest.raises(UserError, match="there is no file"):
        read_weights(tmp_path / "no" / "where" / "m.pt")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no weights \(it is empty\)"):
        read_weights(tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    assert read_weights(tmp_path).path == tmp_path / "a.pt"
    torch.save({"w": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"holds 2 files of weights: a.pt, b.pt"):
        read_weights(tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    torch.save(FashionCNN().state_dict(), tmp_path / "whole.pt")
    save_file(FashionCNN().state_dict(), tmp_path / "whole.safetensors")
    half, header = tmp_path / "half.pt", tmp_path / "header.safetensors"
    half.write_bytes((tmp_path / "whole.pt").read_bytes()[:9000])
    header.write_bytes(b"\xff" * 8 + (tmp_path / "whole.safetensors").read_bytes()[8:])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:9000])
    text = tmp_path / "text.pt"
    text.write_text("<html>404 not found</html>")
    for file in (half, header, cut, text):
        with pytest.raises(UserError, match=r"is not a .*, or it is damaged"):
            read_weights(file)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match=r"empty.pt is empty \(0 bytes\)"):
        read_weights(tmp_path / "empty.pt")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        read_weights(tmp_path / "lfs.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_executed(legacy: bool, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    file = tmp_path / "m.pt"
    content = {"w": torch.ones(1), "x": Payload(trap)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"would run code of (posix|nt).mkdir. It was refused"):
        read_weights(file)
    assert not trap.exists()


def test_whole_models_are_refused_by_class(tmp_path: Path) -> None:
    torch.save(Whole(), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"would run code of \S*Whole[\s\S]*state_dict\(\)"):
        read_weights(tmp_path / "whole.pt")


def test_contents_that_are_no_state_dict(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    torch.save({"epoch": 3, "weights": {"w": torch.ones(1)}}, file)
    with pytest.raises(
        UserError, match=r"of its 2 keys, 2 hold no tensor: epoch \(int\), weights \(dict\)"
    ) as caught:
        read_weights(file)
    assert "under 'weights'" in caught.value.fix
    torch.save({"args": argparse.Namespace(lr=1)}, file)
    with pytest.raises(UserError, match=r"args \(Namespace\)"):
        read_weights(file)
    torch.save([torch.ones(1)], file)
    with pytest.raises(UserError, match="holds a list"):
        read_weights(file)
    torch.save({}, file)
    with pytest.raises(UserError, match="holds an empty dict"):
        read_weights(file)


def test_mismatches_are_counted_and_few_are_named() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    state = {f"x.{key}": tensor for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_into(model, state, "19", "file.pt")
    text = str(caught.value)
    assert "38 missing from the file: 0.weight, 0.bias, 1.weight, ... (35 more)" in text
    assert "40 not in the model: x.0.weight" in text and text.count("weight") < 9
    assert "(0.0% of the backbone's parameters fit)" in text


def test_a_file_without_head_or_batch_counters_loads() -> None:
    state = FashionCNN().state_dict()
    state = {k: v for k, v in state.items() if "fc2" not in k and "num_batches" not in k}
    model = FashionCNN()
    assert not load_into(model, state, "fc2", "file.pt").has_head
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    with pytest.raises(UserError, match=r"1 missing from the file: fc2.bias"):
        load_into(
            model, state | {"fc2.weight": torch.zeros(10, 256)}, "fc2", "file.pt", "builtin:fashion_cnn"
        )


@pytest.mark.shared
def test_the_real_cifar_file(cifar_file: Path) -> None:
    read = read_weights(cifar_file)
    assert read.arch == "timm:mobilenetv3_small_100" and len(read.state) == 244
    assert read.classes is not None and len(read.classes) == 10
    assert read.preprocessing == {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.2435, 0.2616),
        "image_size": (64, 64),
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [(lambda t: t.to_sparse(), "torch.sparse_coo"), (lambda t: t.to(torch.complex64), "torch.complex64")],
)
def test_tensors_that_are_not_dense_and_real_are_refused(change: Any, what: str, tmp_path: Path) -> None:
    state = FashionCNN(2).state_dict()
    torch.save(state | {"fc2.weight": change(state["fc2.weight"])}, tmp_path / "m.pt")
    with pytest.raises(
        UserError, match=rf"m.pt holds tensors that are no plain numbers: fc2.weight \({what}\)"
    ):
        read_weights(tmp_path / "m.pt")


def test_values_that_are_not_finite_are_said(tmp_path: Path) -> None:
    state = FashionCNN(2).state_dict()
    state["fc2.bias"][0] = float("nan")
    torch.save(state, tmp_path / "m.pt")
    assert "1 tensors hold NaN or infinite values: fc2.bias" in read_weights(tmp_path / "m.pt").notes


@pytest.mark.parametrize("classes", [None, ("a", "b")])
def test_a_classifier_without_dimensions_is_refused(classes: Any, tmp_path: Path) -> None:
    torch.save(FashionCNN(2).state_dict() | {"fc2.weight": torch.zeros(())}, tmp_path / "m.pt")
    settings = ModelConfig(name="builtin:fashion_cnn", weights=str(tmp_path / "m.pt"))
    with pytest.raises(UserError, match=r"holds no classifier|fc2\.weight \(scalar in the file"):
        build(settings, {}, classes, 0)


def test_names_that_no_file_can_have() -> None:
    for read in (read_weights, resolve_weights):
        with pytest.raises(UserError, match=r"xxx is no path: File name too long"):
            read("x" * 300)


def test_a_config_with_repeated_names(tmp_path: Path) -> None:
    import timm

    labels = {"0": "crane", "1": "heron", "2": "crane"}
    config: dict[str, Any] = {"architecture": "test_resnet", "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "model.safetensors")
    read = read_weights(tmp_path)
    assert read.classes == ("crane (1)", "heron", "crane (2)")
    assert "config.json names several classes 'crane': numbered" in read.notes
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"crop_pct": 1.5}}))
    with pytest.raises(UserError, match=r"config\.json has crop_pct = '1.5'"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": None, "label_names": {"a": 1}}))
    with pytest.raises(UserError, match=r"config\.json has classes = "):
        read_weights(tmp_path)


def test_whole_numbers_for_weights_are_refused() -> None:
    state = FashionCNN(2).state_dict()
    for kind, words in (
        (torch.int8, "it is quantised"),
        (torch.int64, r"1 weights are whole numbers: fc1.weight"),
    ):
        wrong = state | {"fc1.weight": state["fc1.weight"].to(kind)}
        with pytest.raises(UserError, match=words):
            load_into(FashionCNN(2), wrong, "fc2", "m.pt", "builtin:fashion_cnn")
    with pytest.raises(UserError, match="LoRA adapters are not merged"):
        load_into(FashionCNN(2), state | {"fc.lora_A.weight": torch.ones(2, 2)}, "fc2", "m.pt")
