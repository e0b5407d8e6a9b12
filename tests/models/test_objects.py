"""Python objects as models: found heads, refusals, and whole runs that never touch the object itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fresh
import warmstart as ws
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models import objects
from warmstart.models.build import build
from warmstart.models.objects import keep
from warmstart.run.reader import Run


class Small(nn.Module):
    """Grey images of any size; an extra linear layer before the classifier, and one that is never called."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.answer = nn.Linear(16, num_classes)
        self.unused = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.answer(self.body(self.stem(images)).mean((2, 3)))
        return logits


class Other(Small):
    pass


class Around(nn.Module):
    """What a forward may make of the logits."""

    def __init__(self, change: Any, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.change = inner or Small(), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner(images))


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_KEPT", {})


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def built_from(module: nn.Module, classes: tuple[str, ...] = ("a", "b", "c"), **overrides: Any) -> Any:
    return build(ModelConfig(name=keep(module)), {"image_size": (16, 16), **overrides}, classes, seed=0)


def test_the_head_is_the_layer_that_makes_the_outputs() -> None:
    net = Small().train()
    random = torch.get_rng_state()
    built = built_from(net)
    assert torch.equal(torch.get_rng_state(), random) and net.training
    assert re.fullmatch(r"object:Small-[0-9a-f]{8}", built.name) and built.head == "answer"
    assert [block.name for block in built.blocks] == ["stem", "body", "unused", "head"]
    assert same(state_of(built.module), state_of(net)) and built.module is not net
    assert built.source == {"kind": "object", "path": built.name, "sha256": None}
    assert built.head_change.by_order and "3 outputs for 3 classes" in built.head_change.reason
    assert built.preprocessing.num_channels == 1 and built.preprocessing.mean == pytest.approx(
        (0.449,), abs=1e-3
    )
    assert built.notes == (
        f"{built.name} states no mean and std: ImageNet's, unless --mean and --std say others",
    )
    assert built_from(net, ("x", "y")).module.answer.out_features == 2 and net.answer.out_features == 3


def test_heads_behind_log_softmax_and_pooled_convolutions() -> None:
    assert built_from(Around(lambda logits: logits.log_softmax(1))).head == "inner.answer"
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert built_from(pooled, tuple("abcde")).head == "1"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Around(lambda logits: logits.softmax(1)), "ends in a softmax"),
        (Around(lambda logits: {"logits": logits}), "gives dict, not one row of class scores per image"),
        (Around(lambda logits: logits[:, 0]), "gives 2, not one row"),
        (
            Around(lambda logits: logits[:, :2]),
            r"unclear which layer .* makes its 2 outputs: the last .* 'inner.answer'",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "it has no linear layer"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "cannot run on images of 32 and others pixels"),
        (nn.Linear, "a type was passed as the model"),
    ],
)
def test_objects_that_are_no_classifiers(module: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        keep(module)


def test_sizes_dropout_and_random_weights() -> None:
    net = Small()
    with pytest.raises(UserError, match=r"does not say which image size[\s\S]*--image-size"):
        build(ModelConfig(name=keep(net)), {}, ("a", "b", "c"), 0)
    with pytest.raises(UserError, match=r"--dropout 0\.2 would do nothing"):
        build(ModelConfig(name=keep(net), dropout=0.2), {"image_size": (16, 16)}, ("a", "b", "c"), 0)
    with pytest.raises(UserError, match="the object's own"):
        build(ModelConfig(name=keep(net), weights="none"), {"image_size": (16, 16)}, ("a", "b", "c"), 0)
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 8), nn.ReLU(), nn.Linear(8, 3))
    assert keep(fixed).startswith("object:Sequential-")  # 28 pixels are among the sizes tried
    with pytest.raises(UserError, match="cannot run on images of 16x16 pixels"):
        built_from(fixed)


def test_what_a_timm_object_says_of_itself_is_used() -> None:
    import timm

    built = build(
        ModelConfig(name=keep(timm.create_model("resnet10t", num_classes=3))), {}, ("a", "b", "c"), 0
    )
    assert built.preprocessing.image_size == (176, 176) and built.notes == ()
    assert built.preprocessing.mean == (0.485, 0.456, 0.406) and built.blocks[0].name == "stem"


def test_weights_for_an_object(tmp_path: Path) -> None:
    net, other = Small(), Small(num_classes=5)
    torch.save({"model": other.state_dict()}, tmp_path / "m.pt")
    settings = ModelConfig(name=keep(net), weights=str(tmp_path / "m.pt"))
    built = build(settings, {"image_size": (16, 16)}, tuple("abcde"), 0)
    assert same(state_of(built.module), state_of(other))
    torch.save(Around(None).state_dict(), tmp_path / "around.pt")
    built = build(
        ModelConfig(name=keep(net), weights=str(tmp_path / "around.pt")),
        {"image_size": (16, 16)},
        tuple("abc"),
        0,
    )
    assert built.notes[0] == "stripped the prefix 'inner.' from 18 names"


@pytest.fixture
def settings(small_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    own = {key: value for key, value in small_settings.items() if key not in ("model", "weights")}
    return own | {"runs_dir": str(tmp_path), "epochs": 2, "save_every": "1steps"}


def test_a_whole_run(settings: dict[str, Any], one_thread: None, tmp_path: Path) -> None:
    net = Small()
    before = state_of(net)
    result = ws.finetune(net, **settings, name="a")
    assert same(state_of(net), before), "the object itself is never changed"
    run = Run(tmp_path / "a")
    assert run.resolved["model"]["name"] == run.config["model"]["name"] == keep(Small())
    end = load_file(run.checkpoint(run.pointer("LAST") or 0) / "model.safetensors")
    assert not torch.equal(end["stem.0.weight"], before["stem.0.weight"])
    again = ws.evaluate(str(run.path), module=Small())
    assert again.metrics == pytest.approx({**again.metrics, **result.metrics})
    images = [str(path) for path in sorted((Path(settings["data"]) / "ant").iterdir())]
    assert len(ws.predict(str(run.path), images, module=Small()).to_json()["predictions"]) == len(images)
    assert ws.check(str(run.path), settings["data"], module=Small()).to_json()
    with pytest.raises(UserError, match=r"object:Other-\w+, but .* holds weights of object:Small-"):
        ws.evaluate(str(run.path), module=Other())


def test_resume_is_identical_to_the_byte(settings: dict[str, Any], one_thread: None, tmp_path: Path) -> None:
    net = Small()
    ws.finetune(net, **settings, name="whole")
    ws.finetune(net, **settings, name="cut")
    cut = Run(tmp_path / "cut")
    last = cut.checkpoint_steps()[-1]
    for file in cut.checkpoint(last).iterdir():
        file.unlink()  # a crash while the last checkpoint was written
    cut.checkpoint(last).rmdir()
    status = json.loads((cut.path / "status.json").read_text())
    (cut.path / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    objects._KEPT.clear()  # another process
    with pytest.raises(UserError, match=r"the model was a Python object, a Small[\s\S]*module=Small\(...\)"):
        ws.resume(str(cut.path))
    with pytest.raises(UserError, match=r"was started on object:Small-\w+, not on object:Other-"):
        ws.resume(str(cut.path), module=Other())
    ws.resume(str(cut.path), module=Small())
    files = [Run(tmp_path / name).checkpoint(last) / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_code_is_imported_because_a_file_names_it(settings: dict[str, Any], tmp_path: Path) -> None:
    ws.finetune(Small(), **settings | {"epochs": 1}, name="a")
    done = fresh.run("evaluate", tmp_path / "a", module="warmstart")
    assert done.returncode == 2 and "the model was a Python object, a Small" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_evaluated_with_its_own_object(settings: dict[str, Any], tmp_path: Path) -> None:
    def net(act: nn.Module) -> nn.Module:
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        return nn.Sequential(nn.Conv2d(1, 8, 3), act, *pool)

    assert keep(net(nn.ReLU())) == keep(net(nn.ReLU())) != keep(net(nn.Tanh()))
    assert keep(Small()) == keep(Small(num_classes=5)), "outputs follow the data"
    first = ws.finetune(net(nn.ReLU()), **settings | {"epochs": 1, "lr": 0.05}, name="relu")
    ws.finetune(net(nn.Tanh()), **settings | {"epochs": 1}, name="tanh")
    again = ws.evaluate(str(tmp_path / "relu"))
    assert again.metrics == pytest.approx({**again.metrics, **first.metrics})
    objects._KEPT.clear()
    with pytest.raises(UserError, match="holds weights of object:Sequential-"):
        ws.evaluate(str(tmp_path / "relu"), module=net(nn.Tanh()))
    with pytest.raises(UserError, match="another Sequential was, whose layers or shapes differ"):
        ws.evaluate(str(tmp_path / "relu"))


class Wrapped(nn.Module):
    """All its names share a prefix that wrappers use; a layer and buffers that look like other things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()
        self.net.lora_A = nn.Linear(4, 4)
        self.net.register_buffer("mask", torch.ones(2, 2, dtype=torch.uint8))
        self.net.register_buffer("table", torch.ones(2, 2, dtype=torch.int32))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_names_that_share_a_prefix_are_the_objects_own(prefix: str, tmp_path: Path) -> None:
    net = Wrapped()
    torch.save({prefix + key: tensor for key, tensor in net.state_dict().items()}, tmp_path / "m.pt")
    settings = ModelConfig(name=keep(Wrapped()), weights=str(tmp_path / "m.pt"))
    built = build(settings, {"image_size": (16, 16)}, ("a", "b", "c"), 0)
    assert same(state_of(built.module), state_of(net)) and built.head_change.kind == "kept"
    assert not any("'net.'" in note for note in built.notes)


def test_own_checkpoints_load_whatever_the_names(settings: dict[str, Any], tmp_path: Path) -> None:
    result = ws.finetune(Wrapped(), **settings | {"epochs": 1}, name="a")
    again = ws.evaluate(str(tmp_path / "a"), module=Wrapped())
    assert again.metrics == pytest.approx({**again.metrics, **result.metrics})


def test_a_parametrised_head_is_refused() -> None:
    net = Small()
    nn.utils.parametrizations.weight_norm(net.answer)
    with pytest.raises(
        UserError, match=r"'answer' of the Small is parametrised[\s\S]*remove_parametrizations"
    ):
        keep(net)
