"""Heads of several tasks on one backbone: what computes, what is kept by name, what a file says of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.task_files import alone, find_task, nearest_task, with_name
from warmstart.models.task_heads import add_label_head, called, with_heads
from warmstart.models.weights import read_weights

AB, XYZ = ("a", "b"), ("x", "y", "z")


def classifier(classes: tuple[str, ...] = AB, seed: int = 0) -> BuiltModel:
    return build(ModelConfig(name="timm:resnet10t", weights="none"), {"image_size": (32, 32)}, classes, seed)


def segmenter(classes: tuple[str, ...] = AB) -> BuiltModel:
    return build(
        ModelConfig(name="builtin:microsegformer", weights="none"), {"image_size": (32, 32)}, classes, 0
    )


def images(num: int = 3) -> torch.Tensor:
    return torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_each_task_computes_what_a_model_of_its_own_head_would() -> None:
    alone_model = classifier()
    wanted = alone_model.module.eval()(images())
    built, (first, second) = with_heads(
        classifier(), [("one", "labels", AB), ("two", "labels", XYZ)], "one", None, 0
    )
    module = built.module.eval()
    torch.testing.assert_close(called(first, module)(images()), wanted, rtol=0, atol=0)
    layer = module.get_submodule(second.head)
    assert isinstance(layer, nn.Linear)
    features = alone_model.module
    features.fc = nn.Identity()
    torch.testing.assert_close(called(second, module)(images()), layer(features(images())), rtol=0, atol=0)
    assert called(built, module) is module


def test_blocks_are_the_shared_ones_and_one_per_task() -> None:
    before = classifier()
    built, _ = with_heads(classifier(), [("one", "labels", AB), ("two", "labels", XYZ)], "one", None, 0, True)
    assert [block.name for block in built.blocks] == [
        *(block.name for block in before.blocks[:-1]),
        "head:one",
        "head:two",
    ]
    assert built.blocks[-1].parameters == (
        "fc.task_two.weight",
        "fc.task_two.bias",
        "task_log_variances.task_two",
    )
    named = [name for block in built.blocks for name in block.parameters]
    assert sorted(named) == sorted(name for name, _ in built.module.named_parameters())


def test_beside_masks_labels_hang_on_the_mean_of_the_last_features_and_the_decoder_is_left_alone() -> None:
    built, (masks, labels) = with_heads(
        segmenter(), [("masks", "masks", AB), ("digits", "labels", XYZ)], "masks", None, 0
    )
    module = built.module.eval()
    seen: list[torch.Tensor] = []
    handle = module.get_submodule("norm4").register_forward_hook(lambda _, __, output: seen.append(output))
    decoded: list[object] = []
    behind = module.get_submodule("decoder").register_forward_hook(lambda *_: decoded.append(1))
    outputs = called(labels, module)(images())
    assert not decoded
    layer = module.get_submodule(labels.head)
    torch.testing.assert_close(outputs, layer(seen[0].mean(dim=1)))
    assert called(masks, module)(images()).shape == (3, 2, 32, 32)
    assert decoded
    handle.remove(), behind.remove()
    assert (masks.segments, labels.segments) == (True, False)


@pytest.mark.parametrize("name", ["smp:Unet/resnet18", "torchvision:deeplabv3_mobilenet_v3_large"])
def test_the_encoders_of_the_zoos_give_their_last_features(name: str) -> None:
    start = build(ModelConfig(name=name, weights="none"), {"image_size": (64, 64)}, AB, 0)
    encoder = start.module.get_submodule("encoder" if name.startswith("smp") else "backbone").eval()
    size = images(2).repeat(1, 1, 2, 2)
    features = encoder(size)
    last = [*(features.values() if isinstance(features, dict) else features)][-1]
    built, (_, labels) = with_heads(start, [("m", "masks", AB), ("l", "labels", XYZ)], "m", None, 0)
    layer = built.module.get_submodule(labels.head)
    torch.testing.assert_close(called(labels, built.module.eval())(size), layer(last.mean(dim=(2, 3))))


def write(built: BuiltModel, path: Path) -> Path:
    state = {name: tensor.contiguous() for name, tensor in built.module.state_dict().items()}
    save_file(state, path, metadata_for(built))
    return path


def test_a_file_describes_all_tasks_and_gives_each_back(tmp_path: Path) -> None:
    built, views = with_heads(
        classifier(), [("one", "labels", AB), ("two", "multi-label", XYZ)], "one", None, 0
    )
    file = read_weights(write(built, tmp_path / "several.safetensors"))
    assert file.tasks == built.tasks
    assert file.tasks is not None and file.tasks.names == ("one", "two")
    for view in views:
        assert view.task is not None
        own = build(alone(file, view.task), {}, None, 0)
        assert (own.classes, own.multi_label) == (view.classes, view.multi_label)
        wanted = called(view, built.module.eval())(images())
        torch.testing.assert_close(own.module.eval()(images()), wanted, rtol=0, atol=0)
    with pytest.raises(UserError, match="holds the tasks one, two"):
        build(file, {}, None, 0)
    with pytest.raises(UserError, match=r"none is called 'tow'[\s\S]*'two'"):
        find_task(file.tasks, "tow", "it")


def test_a_segmenting_file_gives_its_labels_back(tmp_path: Path) -> None:
    built, (_, labels) = with_heads(
        segmenter(), [("masks", "masks", AB), ("digits", "labels", XYZ)], "masks", None, 0
    )
    file = read_weights(write(built, tmp_path / "both.safetensors"))
    assert file.tasks is not None
    head = find_task(file.tasks, "digits", "it")
    own = add_label_head(build(alone(file, "masks"), {}, None, 0), file, head)
    assert (own.classes, own.segments) == (XYZ, False)
    wanted = called(labels, built.module.eval())(images())
    torch.testing.assert_close(own.module.eval()(images()), wanted, rtol=0, atol=0)


def test_a_new_training_keeps_rows_by_task_and_class(tmp_path: Path) -> None:
    built, _ = with_heads(classifier(), [("one", "labels", AB), ("two", "labels", XYZ)], "one", None, 0)
    path = write(built, tmp_path / "several.safetensors")
    file, state = read_weights(path), load_file(path)
    start = build((ModelConfig(weights=str(file.path)), alone(file, "three")), {}, ("k", "l"), 7)
    assert start.head_change.kind == "new"
    tasks = [("three", "labels", ("k", "l")), ("two", "labels", ("z", "w")), ("one", "labels", AB)]
    after, views = with_heads(start, tasks, "three", file, 7)
    assert [view.head_change.kind for view in views] == ["new", "mixed", "kept"]
    assert after.head_change.kind == "mixed"
    found = after.module.state_dict()
    torch.testing.assert_close(found["fc.task_two.weight"][0], state["fc.task_two.weight"][2], rtol=0, atol=0)
    torch.testing.assert_close(found["fc.task_one.weight"], state["fc.task_one.weight"], rtol=0, atol=0)
    torch.testing.assert_close(found["conv1.0.weight"], state["conv1.0.weight"], rtol=0, atol=0)


def test_a_file_of_one_task_is_one_of_several(tmp_path: Path) -> None:
    own = classifier()
    file = with_name(read_weights(write(own, tmp_path / "one.safetensors")), "old", "fc", False)
    start = build((ModelConfig(weights=str(file.path)), alone(file, "new")), {}, XYZ, 1)
    after, (_, old) = with_heads(start, [("new", "labels", XYZ), ("old", "labels", AB)], "new", file, 1)
    assert old.head_change.kind == "kept"
    wanted = own.module.eval()(images())
    torch.testing.assert_close(called(old, after.module.eval())(images()), wanted, rtol=0, atol=0)


def test_a_head_is_taken_by_its_classes_where_one_alone_has_them(tmp_path: Path) -> None:
    wanted = [("one", "labels", AB), ("two", "labels", XYZ), ("three", "labels", AB)]
    built, _ = with_heads(classifier(), wanted, "one", None, 0)
    file = read_weights(write(built, tmp_path / "several.safetensors"))
    assert nearest_task(file, ("y", "a")) is None, "three heads have one of them each"
    assert nearest_task(file, ("x", "y")) == "two"
    assert nearest_task(file, AB) is None, "two tasks call their classes so"
