"""The model of document 002: its counts, its names and numbers against the published ones, its files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import fresh
from warmstart.adapt.apply import apply_stage
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig
from warmstart.errors import UserError
from warmstart.models.blocks import find_blocks
from warmstart.models.build import build, metadata_for
from warmstart.models.builtin import BUILTINS, recognise
from warmstart.models.builtin.microsegformer import MicroSegFormer
from warmstart.models.created import shapes_of
from warmstart.models.zoo import create, outline

NAME = "builtin:microsegformer"
STAGES = (1, 2, 3, 4)
CLASSES = ("sky", "road", "car")


def published_names(lmsa: bool = True) -> list[str]:
    """As the reference lists them, parameters in the order of the state of the document's optimizers."""
    layers = [f"patch_embed{s}.{layer}" for s in STAGES for layer in ("proj", "norm")]
    for stage, depth in zip(STAGES, (1, 2, 2, 2), strict=True):
        for i in range(depth):
            reduced = ("attn.sr", "attn.norm") if stage < 4 else ()
            inside = ("norm1", "attn.q", "attn.kv", "attn.proj", *reduced, "norm2", "mlp.fc1", "mlp.fc2")
            layers += [f"block{stage}.{i}.{layer}" for layer in inside]
    layers += [f"norm{s}" for s in STAGES] + [f"decoder.linear_c{s}" for s in (4, 3, 2, 1)]
    names = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    if lmsa:
        bn = [
            f"bn.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
        inside = ["dw_conv3x3.weight", "pw_conv.weight", *bn, "fc.0.weight", "fc.2.weight"]
        names += [f"decoder.lmsa.{name}" for name in inside]
    last = ("linear_fuse.0", "linear_fuse.2", "conv_seg")
    return names + [f"decoder.{layer}.{kind}" for layer in last for kind in ("weight", "bias")]


def published_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published order of computing: everything upsampled first, then put side by side and fused."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def grid(tokens: Tensor, like: Tensor) -> Tensor:
        return tokens.permute(0, 2, 1).reshape(len(tokens), -1, *like.shape[2:])

    def up(x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    features = []
    for stage, (depth, reduction) in enumerate(zip((1, 2, 2, 2), (8, 4, 2, 1), strict=True), 1):
        x = conv(f"patch_embed{stage}.proj", x, stride=4 if stage == 1 else 2, padding=3 if stage == 1 else 1)
        t = norm(f"patch_embed{stage}.norm", x.flatten(2).permute(0, 2, 1))
        for i in range(depth):
            block = f"block{stage}.{i}"
            y = norm(f"{block}.norm1", t)
            context = y
            if reduction > 1:
                small = conv(f"{block}.attn.sr", grid(y, x), stride=reduction)
                context = norm(f"{block}.attn.norm", small.flatten(2).permute(0, 2, 1))
            keys, values = linear(f"{block}.attn.kv", context).chunk(2, dim=2)
            scores = linear(f"{block}.attn.q", y) @ keys.mT / keys.shape[-1] ** 0.5
            t = t + linear(f"{block}.attn.proj", scores.softmax(-1) @ values)
            t = t + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", t))))
        x = grid(norm(f"norm{stage}", t), x)
        features.append(x)
    first = features[0]
    same = [
        up(grid(linear(f"decoder.linear_c{s}", f.flatten(2).permute(0, 2, 1)), f), first.shape[2:])
        for s, f in zip(STAGES, features, strict=True)
    ]
    t = F.gelu(linear("decoder.linear_fuse.0", torch.cat(same, 1).flatten(2).permute(0, 2, 1)))
    x = grid(linear("decoder.linear_fuse.2", t), first)
    if "decoder.lmsa.pw_conv.weight" in state:
        lmsa = "decoder.lmsa"
        y = conv(f"{lmsa}.pw_conv", conv(f"{lmsa}.dw_conv3x3", x, padding=1, groups=x.shape[1]))
        statistics = [state[f"{lmsa}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        y = F.batch_norm(y, *statistics)
        gate = linear(f"{lmsa}.fc.2", linear(f"{lmsa}.fc.0", y.mean((2, 3))).relu()).sigmoid()
        x = x + y * gate[:, :, None, None]
    return conv("decoder.conv_seg", F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False))


def lively(lmsa: bool = True) -> MicroSegFormer:
    """No norm at its identity and no statistics at their start, so that every tensor matters."""
    torch.manual_seed(0)
    module = MicroSegFormer(lmsa=lmsa).eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "norm" in name or ("bn" in name and tensor.is_floating_point()):
                tensor.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize(("lmsa", "count", "num_tensors"), [(True, 1_747_923, 165), (False, 1_721_939, 156)])
def test_counts_and_names(lmsa: bool, count: int, num_tensors: int) -> None:
    with torch.device("meta"):
        module = MicroSegFormer(lmsa=lmsa)
    assert sum(p.numel() for p in module.parameters()) == count
    assert list(module.state_dict()) == published_names(lmsa)
    assert len(module.state_dict()) == num_tensors
    assert sum(p.numel() for n, p in module.named_parameters() if ".lmsa." in n) == (25_984 if lmsa else 0)


@pytest.mark.parametrize("lmsa", [True, False])
def test_it_computes_what_is_published(lmsa: bool) -> None:
    module, images = lively(lmsa), torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        found, wanted = module(images), published_forward(module.state_dict(), images)
    assert found.shape == (2, 19, 96, 64)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_dropout_by_stage() -> None:
    module = create(NAME, dropout=0.2).module
    rates = [
        [m.p for m in module.get_submodule(f"block{s}").modules() if isinstance(m, nn.Dropout)]
        for s in STAGES
    ]
    assert [sorted(set(found)) for found in rates] == [[0.1], [pytest.approx(0.15)], [0.2], [0.25]]
    assert [module.get_submodule(f"block{s}.0.attn").dropout for s in STAGES] == [r[0] for r in rates]
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    module.get_submodule("decoder").eval()
    assert not torch.equal(module(images), module(images))
    assert torch.equal(module.eval()(images), module(images))
    assert BUILTINS["microsegformer"].dropout == 0.15


def test_image_sizes() -> None:
    made = create(NAME, num_classes=5, image_size=(50, 70))
    assert made.segments and made.channels_last and outline(NAME).segments
    assert made.preprocessing.mean == (0, 0, 0) and made.preprocessing.std == (1, 1, 1)
    assert create(NAME).preprocessing.image_size == (512, 512) and made.preprocessing.crop_pct == 1.0
    assert made.module.eval()(torch.rand(1, 3, 50, 70)).shape == (1, 5, 50, 70)
    made.module.eval()(torch.rand(1, 3, 29, 29))
    with pytest.raises(
        UserError, match="builtin:microsegformer cannot run on images of 28x28 pixels"
    ) as caught:
        create(NAME, image_size=(28, 28))
    assert "nearest that work: 32x32\n" in str(caught.value)
    with pytest.raises(UserError, match="takes 3 channels, not 1"):
        create(NAME, in_channels=1)


def test_recognised_with_and_without_lmsa() -> None:
    for name in ("microsegformer", "microsegformer_nolmsa"):
        with torch.device("meta"):
            shapes = shapes_of(BUILTINS[name].make(7, 0.0))
        assert recognise(shapes, shapes) == f"builtin:{name}"
        assert recognise(list(shapes)[1:], shapes) is None


def checkpoint(folder: Path, lmsa: bool = True) -> Path:
    """As ce7454 writes it, numpy scalars included."""
    module = lively(lmsa)
    optimizer = torch.optim.AdamW(module.parameters(), 4e-4)
    content = {
        "epoch": 91,
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {"last_epoch": 91, "_last_lr": [np.float64(1e-5)]},
        "best_f_score": np.float64(0.688861),
        "config": {"model": {"name": "microsegformer", "dropout": 0.15, "use_lmsa": lmsa}},
        "history": {
            "val_f_score": [np.float64(0.68)],
            "val_loss": [np.float32(0.9)],
            "epochs": [np.int64(0)],
        },
    }
    torch.save(content, folder / "best_model.pth")
    return folder / "best_model.pth"


FRESH = """
import sys, torch
from warmstart.config.schema import ModelConfig
from warmstart.models.build import build
built = build(ModelConfig(weights=sys.argv[1]), {}, None, seed=0)
torch.manual_seed(1)
with torch.no_grad():
    outputs = built.module.eval()(torch.rand(1, 3, 64, 64))
torch.save({"name": built.name, "segments": built.segments, "classes": built.classes, "outputs": outputs}, sys.argv[2])
"""


def test_a_checkpoint_of_the_document_loads_in_a_fresh_process(tmp_path: Path) -> None:
    file, result = checkpoint(tmp_path), tmp_path / "result.pt"
    done = fresh.run(file, result, code=FRESH)
    assert done.returncode == 0, done.stderr
    found = torch.load(result)
    assert (found["name"], found["segments"]) == (NAME, True)
    assert found["classes"] == tuple(str(number) for number in range(19))
    torch.manual_seed(1)
    images = torch.rand(1, 3, 64, 64)
    wanted = published_forward(lively().state_dict(), images)
    torch.testing.assert_close(found["outputs"], wanted, atol=2e-5, rtol=1e-4)


def test_a_new_head_by_name_and_the_way_back(tmp_path: Path) -> None:
    built = build(ModelConfig(weights=str(checkpoint(tmp_path, lmsa=False))), {}, CLASSES, seed=3)
    assert built.name == "builtin:microsegformer_nolmsa" and built.segments
    assert (built.head, built.head_change.kind) == ("decoder.conv_seg", "new")
    assert built.head_change.reason == "19 outputs, without names, for 3 classes"
    assert built.notes[0] == "took the weights under 'model_state_dict'"
    state = built.module.state_dict()
    save_file(state, tmp_path / "mine.safetensors", metadata=metadata_for(built))
    again = build(ModelConfig(weights=str(tmp_path / "mine.safetensors")), {}, None, seed=9)
    assert again.classes == CLASSES and again.segments and again.preprocessing == built.preprocessing
    assert all(torch.equal(state[key], tensor) for key, tensor in again.module.state_dict().items())
    other = build(ModelConfig(weights=str(tmp_path / "mine.safetensors")), {}, ("car", "tree", "sky"), seed=9)
    assert other.head_change.kept == ("car", "sky") and other.head_change.new == ("tree",)
    head, old = (m.module.get_submodule("decoder.conv_seg") for m in (other, built))
    assert torch.equal(head.weight[0], old.weight[2]) and torch.equal(head.bias[2], old.bias[0])
    assert other.module.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_blocks_stand_in_the_order_of_computing() -> None:
    with torch.device("meta"):
        made = create(NAME, 3)
    blocks = find_blocks(made.module, made.head)
    assert [block.name for block in blocks] == [
        *("patch_embed1", "block1", "patch_embed2", "block2.0", "block2.1", "patch_embed3", "block3.0"),
        *("block3.1", "patch_embed4", "block4.0", "block4.1", "decoder", "head"),
    ]
    for (_, block), stage in zip(list(pairwise(blocks))[::3], STAGES, strict=True):
        assert all(name.partition(".")[0][-1] == str(stage) for name in block.parameters if stage < 4)
    assert "norm1.weight" in blocks[1].parameters and "norm4.bias" in blocks[-3].parameters
    assert blocks[-2].norms == ("decoder.lmsa.bn",)
    sizes = {n: tuple(p.shape) for n, p in made.module.named_parameters()}
    plan = make_plan(blocks, sizes, AdaptConfig(freeze=("block2.1",)), OptimConfig())
    apply_stage(made.module, plan, 0)
    frozen = {n for n, p in made.module.named_parameters() if not p.requires_grad}
    assert frozen == set(blocks[4].parameters)


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    state = {key: t for key, t in lively().state_dict().items() if not key.startswith("block4.1.")}
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(
        UserError, match="another depth: block4 has 1 blocks in the file and 2 in builtin:micro"
    ):
        build(ModelConfig(name=NAME, weights=str(tmp_path / "short.pth")), {}, CLASSES, seed=0)
    with pytest.raises(UserError, match=r"but .* holds weights of builtin:microsegformer"):
        build(ModelConfig(name="builtin:fashion_cnn", weights=str(checkpoint(tmp_path))), {}, CLASSES, seed=0)
