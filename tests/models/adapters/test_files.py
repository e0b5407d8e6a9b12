"""Adapter folders: peft reads ours, we read peft's, and a base is told by its tensors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.adapters.files import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    Adapter,
    adapter_files,
    identity,
    read_adapter,
)
from warmstart.models.adapters.four_bit import put_in_four_bits
from warmstart.models.adapters.inject import inject, merged
from warmstart.models.blocks import find_blocks
from warmstart.records import Base, Block, Lora

BASE = Base("file", "/models/base.safetensors")


class Net(nn.Module):
    """A layer of each kind that can have an adapter, a norm with buffers, and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.qkv = nn.Linear(16, 48)
            self.out = nn.Linear(48, 16, bias=False)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        x = x + self.out(self.qkv(x).tanh())
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


ALL = ("conv", "qkv", "out", "attention")
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def trained(lora: Lora, seed: int = 0) -> Net:
    """A net with adapters and a head that have moved, in evaluation mode.

    Those of an attention's output projection have not: peft 0.21 adds their product twice.
    """
    module = Net(seed)
    inject(module, find_blocks(module, "head"), lora, seed, "head")
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "out_proj" not in name and ("lora_" in name or name.startswith("head")):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module.eval()


def write(folder: Path, module: nn.Module, lora: Lora, **given: Any) -> Path:
    folder.mkdir()
    own = [name for name in module.state_dict() if name.startswith("head.")]
    files = adapter_files(module.state_dict(), given.pop("own", own), lora, {"warmstart.name": "n"}, BASE)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> Adapter:
    found = read_adapter(folder / WEIGHTS, load_file(folder / WEIGHTS))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "targets"),
    [("lora", ALL), ("rslora", ALL), ("dora", ("conv", "qkv", "out")), ("lora", ("qkv",))],
)
def test_peft_loads_our_folder_and_computes_the_same(
    kind: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    from peft import PeftModel

    lora = Lora(kind, 4, 6.0, 0.0, targets)
    module = trained(lora)
    folder = write(tmp_path / "adapter", module, lora)
    base = Net()  # with the head of the base, not the trained one
    with torch.no_grad():
        base.head.weight.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    torch.testing.assert_close(loaded(IMAGES), module(IMAGES), rtol=1e-5, atol=1e-5)
    assert (loaded(IMAGES) - Net().eval()(IMAGES)).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_we_read_what_peft_saves(kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["conv", "qkv"] if kind == "dora" else list(ALL)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=targets,
        modules_to_save=["head"],
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
    )
    model = get_peft_model(Net(), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "out_proj" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.save_pretrained(str(tmp_path / "peft"))
    adapter = read(tmp_path / "peft")
    assert adapter.base is None and adapter.replaced == ("head",)
    assert (adapter.lora.kind, adapter.lora.rank, adapter.lora.alpha) == (kind, 4, 6.0)
    assert sorted(adapter.lora.targets) == sorted(targets)
    plain = Net().eval()
    plain.load_state_dict(merged({**Net().state_dict(), **adapter.tensors}, adapter.lora))
    torch.testing.assert_close(plain(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


def test_names_of_older_versions_of_peft_are_understood(tmp_path: Path) -> None:
    lora = Lora("lora", 4, 6.0, 0.0, ALL)
    folder = write(tmp_path / "adapter", trained(lora), lora)
    wanted = read(folder).tensors
    renamed = {
        name.replace("lora_A.weight", "lora_A.default.weight")
        .replace("lora_B.weight", "lora_B.default.weight")
        .replace("model.head.", "model.head.modules_to_save.default."): tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    renamed["base_model.model.head.original_module.weight"] = torch.zeros(5, 16)
    save_file(renamed, folder / WEIGHTS)
    adapter = read(folder)
    assert adapter.replaced == ("head",) and adapter.lora == lora
    assert set(adapter.tensors) == set(wanted)
    assert all(torch.equal(adapter.tensors[name], wanted[name]) for name in wanted)


def test_our_own_folder_comes_back_whole(tmp_path: Path) -> None:
    lora = Lora("lora", 4, 6.0, 0.1, ("qkv", "conv"))
    module = trained(lora)
    adapter = read(write(tmp_path / "adapter", module, lora))
    assert adapter.lora == lora and adapter.entries == {"warmstart.name": "n"}
    assert adapter.base == Base("file", BASE.path, identity(Net().state_dict(), ("head",)))
    full = module.state_dict()
    assert all(torch.equal(tensor, full[name]) for name, tensor in adapter.tensors.items())
    assert {name for name in full if name.startswith("head.") or ".lora_" in name} == set(adapter.tensors)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["modules_to_save"] == ["head"] and config["base_model_name_or_path"] == BASE.path


def test_a_base_is_told_by_every_name_shape_and_bit() -> None:
    state = Net().state_dict()
    known = identity(state, ("head",))
    assert identity({**state, "head.weight": torch.zeros(9, 16)}, ("head",)) == known
    assert identity(dict(reversed(state.items())), ("head",)) == known
    bit = state["qkv.weight"].clone()
    bit[3, 2] = torch.nextafter(bit[3, 2], torch.tensor(9.0))
    others = [
        {**state, "qkv.weight": bit},
        {**state, "qkv.weight": state["qkv.weight"].view(16, 48)},
        {**state, "norm.running_mean": state["norm.running_mean"] + 1},
        {("other" if name == "out.weight" else name): tensor for name, tensor in state.items()},
        {name: tensor for name, tensor in state.items() if name != "norm.num_batches_tracked"},
    ]
    assert known not in [identity(other, ("head",)) for other in others]
    assert identity(others[0], ("head",), {"qkv.weight"}) == identity(state, ("head",), {"qkv.weight"})


def test_a_base_in_4_bits_counts_as_what_it_was_before() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.up, self.head = nn.Linear(64, 128), nn.Linear(128, 3)

    lora = Lora("lora", 4, 8.0, 0.0, ("up",), bits=4)
    module = Wide()
    put_in_four_bits(module, inject(module, find_blocks(module, "head"), lora, 0, "head"), lora)
    assert identity(module.state_dict(), ("head",)) == identity(Wide().state_dict(), ("head",))


def test_norms_that_moved_are_saved_whole(tmp_path: Path) -> None:
    lora = Lora("lora", 4, 6.0, 0.0, ("qkv",))
    module = trained(lora)
    own = [name for name in module.state_dict() if name.startswith(("head.", "norm."))]
    adapter = read(write(tmp_path / "adapter", module, lora, own=own))
    assert adapter.replaced == ("head", "norm") and "norm.running_var" in adapter.tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"rank_pattern": {"qkv": 8}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"r": None}, "r None"),
    ],
)
def test_other_adapters_are_refused_by_name(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    lora = Lora("lora", 4, 6.0, 0.0, ("qkv",))
    folder = write(tmp_path / "adapter", trained(lora), lora)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        read(folder)


def test_a_damaged_manifest_says_so(tmp_path: Path) -> None:
    lora = Lora("lora", 4, 6.0, 0.0, ("qkv",))
    folder = write(tmp_path / "adapter", trained(lora), lora)
    (folder / MANIFEST).write_text(json.dumps({"base": {"kind": "file"}}))
    with pytest.raises(UserError, match=r"warmstart\.json is damaged"):
        read(folder)


def test_other_files_of_weights_are_none_of_its_business(tmp_path: Path) -> None:
    save_file(Net().state_dict(), tmp_path / "model.safetensors")
    assert read_adapter(tmp_path / "model.safetensors", Net().state_dict()) is None


def test_the_adapter_of_clip_is_below_one_percent_of_it() -> None:
    """ViT-B/32 with r 8 at queries and values, and a head of 1000 classes, on the meta device: nothing is computed."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        whole = transformers.CLIPModel(transformers.CLIPConfig())
        module = nn.Module()
        module.tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig())
        module.head = nn.Linear(768, 1000)
    assert sum(p.numel() for p in whole.parameters()) == 151_277_313
    assert sum(p.numel() for p in module.tower.parameters()) == 87_456_000
    targets = tuple(path for path, _ in module.named_modules() if path.endswith(("q_proj", "v_proj")))
    names = [name for name, _ in module.named_parameters()]
    blocks = tuple(
        Block(at, tuple(name for name in names if name.startswith(at)), (), (), ())
        for at in ("tower", "head")
    )
    inject(module, blocks, Lora("lora", 8, 16.0, 0.0, targets), 0, "head")
    adapters = {name: p for name, p in module.named_parameters() if ".lora_" in name}
    assert sum(p.numel() for p in adapters.values()) == 294_912
    saved = sum(p.nbytes for p in adapters.values()) + sum(p.nbytes for p in module.head.parameters())
    assert saved < 0.01 * sum(p.nbytes for p in whole.parameters()) < 0.01 * 0.61e9
