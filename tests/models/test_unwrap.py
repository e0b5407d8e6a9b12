"""Files as other tools write them: their dicts built by hand, around tiny weights."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import build
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.models.unwrap import strip_prefixes
from warmstart.models.weights import WeightsFile, read_weights

OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


class Custom:
    """Harmless, but not on the list."""


def tiny(prefix: str = "", num_classes: int = 2) -> dict[str, Tensor]:
    return {
        f"{prefix}conv.weight": torch.arange(27.0).reshape(1, 3, 3, 3),
        f"{prefix}fc.weight": torch.ones(num_classes, 4),
        f"{prefix}fc.bias": torch.zeros(num_classes),
    }


def read(content: Any, folder: Path, name: str = "m.pt") -> WeightsFile:
    torch.save(content, folder / name)
    return read_weights(folder / name)


def same(found: WeightsFile, wanted: dict[str, Tensor]) -> bool:
    return list(found.state) == list(wanted) and all(torch.equal(found.state[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state", "model_state_dict"])
def test_wrappers(key: str, tmp_path: Path) -> None:
    found = read({key: tiny(), "epoch": 0, "optimizer": OPTIMIZER}, tmp_path)
    assert same(found, tiny())
    assert found.notes == (
        f"took the weights under {key!r}",
        "ignored beside the weights: epoch, optimizer",
    )


@pytest.mark.parametrize("key", ["ema", "state_dict_ema"])
def test_ema_is_taken_only_alone(key: str, tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in tiny().items()}
    found = read({"model": tiny(), key: averaged}, tmp_path)
    assert same(found, tiny())
    assert found.notes == ("took the weights under 'model'", f"their EMA twin under {key!r} was not taken")
    found = read({key: averaged, "epoch": 3}, tmp_path)
    assert same(found, averaged)
    assert found.notes[0] == f"took the EMA weights under {key!r}: the file has no others"


def test_an_averaged_model_and_a_wrapped_wrapper(tmp_path: Path) -> None:
    content = {"model_ema": {"n_averaged": torch.tensor(3), **tiny("module.")}}
    found = read(content, tmp_path)
    assert same(found, tiny())
    assert found.notes[1:] == (
        "left out the counter 'n_averaged' of averaged weights",
        "stripped the prefix 'module.' from 3 names",
    )
    found = read({"ema": {"decay": 0.99, "module": tiny()}}, tmp_path)
    assert same(found, tiny())
    assert found.notes[0] == "took the EMA weights under 'ema.module': the file has no others"


@pytest.mark.parametrize("key", ["module", "state_dict", "model"])
def test_plain_weights_come_before_their_average_in_nested_dicts_too(key: str, tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in tiny().items()}
    found = read({"model": {"ema": averaged, key: tiny()}}, tmp_path)
    assert same(found, tiny())
    assert found.notes == (
        f"took the weights under 'model.{key}'",
        "their EMA twin under 'model.ema' was not taken",
    )
    assert same(read({"ema": averaged, "module": tiny()}, tmp_path), tiny())
    found = read({"model": {**tiny(), "ema": averaged}}, tmp_path)
    assert same(found, tiny()) and found.notes[1] == "their EMA twin under 'model.ema' was not taken"
    found = read({"model": {"ema": {"decay": torch.ones(()), "shadow": averaged}}}, tmp_path)
    assert same(found, averaged)
    found = read({"model": {"ema": averaged}}, tmp_path)
    assert same(found, averaged)
    assert found.notes == ("took the EMA weights under 'model.ema': the file has no others",)


def test_two_models_in_one_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds weights under 'state_dict' and under 'model'"):
        read({"model": tiny(), "state_dict": tiny()}, tmp_path)


def test_values_beside_bare_weights_are_ignored(tmp_path: Path) -> None:
    found = read({**tiny(), "lr": 0.1}, tmp_path)
    assert same(found, tiny()) and found.notes == ("ignored beside the weights: lr",)
    with pytest.raises(UserError, match="not a bare state_dict") as caught:
        read({"epoch": torch.tensor(3), "network": tiny()}, tmp_path)
    assert "under 'network'" in caught.value.fix


def test_prefixes_go_repeatedly_and_only_when_all_carry_them() -> None:
    state, notes, prefixes = strip_prefixes(tiny("module._orig_mod.model."))
    assert prefixes == ("module.", "_orig_mod.", "model.")
    assert list(state) == list(tiny())
    assert [note.split("'")[1] for note in notes] == ["module.", "_orig_mod.", "model."]
    for prefix in ("backbone.", "net."):
        assert list(strip_prefixes(tiny(prefix))[0]) == list(tiny())
    mixed = {**tiny("backbone."), "head.weight": torch.ones(2, 2)}
    assert strip_prefixes(mixed) == strip_prefixes(mixed, is_lightning=True) == (mixed, (), ())


def test_lightning(tmp_path: Path) -> None:
    content = {
        "epoch": 4,
        "global_step": 50,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**tiny("model."), "criterion.weight": torch.ones(2), "val_acc.tp": torch.zeros(2)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 5}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "class_names": ["cat", "dog"]},
    }
    found = read(content, tmp_path, "epoch=4.ckpt")
    assert same(found, tiny()) and found.classes == ("cat", "dog")
    assert "left out 2 tensors that are not the model's: criterion.weight, val_acc.tp" in found.notes
    assert "stripped the prefix 'model.' from 3 names" in found.notes
    assert "took the 2 class names under 'class_names'" in found.notes


def test_timm(tmp_path: Path) -> None:
    content = {
        "epoch": 9,
        "arch": "resnet10t",
        "state_dict": tiny(),
        "optimizer": OPTIMIZER,
        "version": 2,
        "args": argparse.Namespace(model="resnet10t", data=Path("/data"), when=datetime.datetime(2025, 1, 1)),
        "state_dict_ema": tiny(),
        "metric": np.float64(71.5),
    }
    found = read(content, tmp_path, "model_best.pth.tar")
    assert same(found, tiny()) and found.arch == "timm:resnet10t"
    assert "their EMA twin under 'state_dict_ema' was not taken" in found.notes
    assert read_weights(tmp_path).path.name == "model_best.pth.tar"  # found in its folder
    del content["version"]  # as torch's own ImageNet example: `arch` is torchvision's there
    assert read(content, tmp_path).arch is None


def test_ocec(tmp_path: Path) -> None:
    content = {
        "model_config": {"arch_variant": "baseline", "base_channels": 32},
        "normalization": {"mean": [0.0], "std": [1.0], "image_size": (32, 64)},
        "label_map": {0: "closed", 1: "open"},
        "amp_enabled": False,
        "tensorboard_logdir": PurePath("runs"),
        "epoch": 4,
        "model_state": tiny("", 1),
        "optimizer_state": OPTIMIZER,
        "val_metrics": {"loss": np.float32(0.1), "f1": np.float64(0.93), "confusion": np.eye(2)},
        "best_f1": np.float64(0.93),
    }
    found = read(content, tmp_path)
    assert same(found, tiny("", 1)) and found.classes == ("closed", "open")  # `fit_names` knows the head
    assert found.notes[-2:] == (
        "took the 2 class names under 'label_map'",
        "took mean, std, image_size under 'normalization'",
    )
    assert found.preprocessing == {"mean": (0.0,), "std": (1.0,), "image_size": (32, 64)}
    content["normalization"] = {"mean": np.zeros(1), "std": torch.ones(1), "image_size": "48x48"}
    assert read(content, tmp_path).preprocessing == {"mean": (0.0,), "std": (1.0,), "image_size": (48, 48)}
    content["normalization"] = {"mean": ["grey"]}
    with pytest.raises(UserError, match="has mean = "):
        read(content, tmp_path)


def test_wrappers_in_the_middle_of_names(tmp_path: Path) -> None:
    state = {f"encoder._orig_mod.{key}": tensor for key, tensor in tiny().items()}
    found = read(state, tmp_path)
    assert list(found.state) == [f"encoder.{key}" for key in tiny()]
    assert found.notes == ("took the wrapper '_orig_mod' out of 3 names",)


def test_ce7454(tmp_path: Path) -> None:
    content = {
        "epoch": 91,
        "model_state_dict": tiny(),
        "optimizer_state_dict": OPTIMIZER,
        "scheduler_state_dict": {"last_epoch": 91},
        "best_f_score": np.float64(0.7041),
        "config": {"training": {"early_stopping_patience": None}},
        "history": {"val_f_score": [np.float64(0.7), np.float64(0.7041)], "epochs": [np.int64(0)]},
    }
    found = read(content, tmp_path, "best_model.pth")
    assert same(found, tiny())
    assert found.notes[0] == "took the weights under 'model_state_dict'"
    assert found.notes[1].startswith("ignored beside the weights: epoch, optimizer_state_dict")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("classes", ["a", "b"], ("a", "b")),
        ("class_names", ("a", "b"), ("a", "b")),
        ("label_map", {"b": 1, "a": 0}, ("a", "b")),
        ("label_map", {"1": "b", "0": "a"}, ("a", "b")),
        ("class_to_idx", {"a": np.int64(0), "b": np.int64(1)}, ("a", "b")),
        ("label_map", {"a": 1, "b": 2}, None),
        ("classes", ["a", "a"], None),
        ("classes", [0, 1], None),
        ("idx_to_class", {"0": "1", "1": "0"}, ("1", "0")),
        ("idx_to_class", {"0": "0", "1": "1", "2": "10", "3": "2"}, ("0", "1", "10", "2")),
        ("idx_to_class", {"a": 1, "b": 0}, ("b", "a")),
        ("class_to_idx", {"0": "1", "1": "2", "2": "0"}, ("2", "0", "1")),
        ("class_to_idx", {0: "b", 1: "a"}, ("b", "a")),
        ("label_map", {"0": "1", "1": "2", "2": "0"}, ("1", "2", "0")),
        ("label_map", {"0": 1, "1": 2, "2": 0}, ("2", "0", "1")),
    ],
)
def test_class_names(key: str, value: Any, expected: tuple[str, ...] | None, tmp_path: Path) -> None:
    found = read({"model": tiny(), key: value}, tmp_path)
    assert found.classes == expected
    assert found.notes[-1].endswith("ignored") == (expected is None)


def test_code_and_unlisted_classes_are_still_refused(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    for content in (Payload(trap), [Payload(trap)]):
        with pytest.raises(UserError, match=r"would run code of (posix|nt).mkdir. It was refused"):
            read({"state_dict": tiny(), "args": content}, tmp_path)
    assert not trap.exists()
    with pytest.raises(UserError, match=r"would run code of \S*Custom. It was refused"):
        read({"state_dict": tiny(), "config": Custom()}, tmp_path)


def test_a_truncated_wrapped_file(tmp_path: Path) -> None:
    file = tmp_path / "m.pt"
    torch.save({"state_dict": FashionCNN().state_dict(), "epoch": 1}, file)
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(
        UserError, match=r"m.pt \(9,000 bytes\) is not a PyTorch checkpoint, or it is damaged"
    ):
        read_weights(file)


def test_a_wrapped_file_builds_a_model_with_notes(tmp_path: Path) -> None:
    state = {f"module.{key}": tensor for key, tensor in FashionCNN(2).state_dict().items()}
    torch.save({"model": state, "classes": ["cat", "dog"]}, tmp_path / "m.pt")
    built = build(ModelConfig(weights=str(tmp_path / "m.pt")), {}, ("dog", "cat"), seed=0)
    assert built.name == "builtin:fashion_cnn" and built.head_change.kind == "kept"
    assert torch.equal(built.module.get_submodule("fc2").weight, state["module.fc2.weight"][[1, 0]])
    assert any("stripped the prefix 'module.'" in note for note in built.notes)


def test_class_names_are_counted_at_the_head_wherever_it_stands(tmp_path: Path) -> None:
    state = dict(sorted(FashionCNN(2).state_dict().items(), reverse=True))  # the head is not the last
    torch.save({"model": state, "classes": ["cat", "dog"]}, tmp_path / "m.pt")
    built = build(ModelConfig(weights=str(tmp_path / "m.pt")), {}, None, seed=0)
    assert built.classes == ("cat", "dog") and "took the 2 class names under 'classes'" in built.notes
    torch.save({"model": state, "classes": ["cat", "dog", "emu"]}, tmp_path / "m.pt")
    built = build(ModelConfig(weights=str(tmp_path / "m.pt")), {}, None, seed=0)
    assert built.classes == ("0", "1") and not built.names_known
    assert "'classes' has 3 names, but the classifier 'fc2' 2 outputs: ignored" in built.notes
    assert not any("took the 3" in note for note in built.notes)


def shards(folder: Path) -> Path:
    state = tiny("model.")
    first, *rest = state
    save_file({first: state[first]}, folder / "model-00001-of-00002.safetensors")
    save_file({key: state[key] for key in rest}, folder / "model-00002-of-00002.safetensors")
    where = {key: f"model-0000{1 if key == first else 2}-of-00002.safetensors" for key in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def test_shards(tmp_path: Path) -> None:
    index = shards(tmp_path)
    one, two = read_weights(index), read_weights(tmp_path)
    assert same(one, tiny()) and one.sha256 == two.sha256 and two.path == index
    assert one.notes == (
        "put together from 2 safetensors files",
        "stripped the prefix 'model.' from 3 names",
    )
    save_file({"model.fc.weight": torch.ones(2, 4)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 tensors that model.safetensors.index.json says"):
        read_weights(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"1 of them are missing: model-00002-of-00002.safetensors"):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": "../m.bin"}}'])
def test_broken_indices(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match="is not an index of safetensors files"):
        read_weights(tmp_path)
