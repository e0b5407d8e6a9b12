"""Where adapters go: by the model's family, by what the settings name, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmstart.errors import UserError, listing
from warmstart.models.adapters.inject import inject
from warmstart.models.adapters.targets import Targets, resolve_targets
from warmstart.models.blocks import find_blocks
from warmstart.models.created import Created
from warmstart.models.zoo import create
from warmstart.records import Lora, Preprocessing


def made(name: str, size: int = 32) -> Created:
    with torch.device("meta"):
        return create(name, 5, image_size=(size, size))


def targets(
    created: Created, *patterns: str, frozen: Sequence[str] = (), rank: int = 4, size: int = 32
) -> Targets:
    blocks = find_blocks(created.module, created.head)
    preprocessing = Preprocessing((size, size), (0.5,) * 3, (0.5,) * 3)
    return resolve_targets(created.module, blocks, frozen, patterns, rank, preprocessing)


def refused(*patterns: str, name: str = "timm:vit_tiny_patch16_224", **given: Any) -> str:
    with pytest.raises(UserError) as error:
        targets(made(name, given.get("size", 32)), *patterns, **given)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "size", "ends", "num"),
    [
        ("timm:vit_tiny_patch16_224", 32, {"qkv"}, 12),
        ("timm:swin_tiny_patch4_window7_224", 224, {"qkv"}, 12),
        ("timm:mobilevit_xxs", 64, {"qkv"}, 9),
        ("timm:convnext_atto", 32, {"fc1", "fc2"}, 24),
        # qkv is computed past its layer there, with a bias put together on the way.
        ("timm:beit_base_patch16_224", 224, {"fc1", "fc2"}, 24),
        ("torchvision:vit_b_32", 224, {"self_attention"}, 12),
    ],
)
def test_families(name: str, size: int, ends: set[str], num: int) -> None:
    found = targets(made(name, size), size=size)
    assert {path.rpartition(".")[2] for path in found.paths} == ends
    assert len(found.paths) == num and not found.notes


def test_without_a_family_every_plain_layer_below_the_head() -> None:
    created = made("timm:mobilenetv3_small_100")
    found = targets(created, rank=20)
    layers = {path: layer for path, layer in created.module.named_modules() if isinstance(layer, nn.Conv2d)}
    plain = [path for path, layer in layers.items() if layer.groups == 1]
    weights = {path: layers[path].weight for path in plain}
    narrow = [path for path, weight in weights.items() if min(len(weight), weight[0].numel()) < 20]
    assert 0 < len(narrow) < len(plain) < len(layers)
    assert list(found.paths) == [path for path in plain if path not in narrow]
    assert found.notes == (
        f"--lora.rank 20: {len(narrow)} layers are narrower and have no adapter: {listing(narrow, 3)}",
    )


def test_patterns_are_ends_of_paths_globs_and_all_linear() -> None:
    created = made("timm:vit_tiny_patch16_224")
    assert len(targets(created, "proj").paths) == 13  # of the patches too
    assert targets(created, "attn.proj", "blocks.11.*").paths == (
        *(f"blocks.{number}.attn.proj" for number in range(11)),
        *(f"blocks.11.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    )
    assert len(targets(created, "all-linear").paths) == 48
    assert targets(created, "qkv", frozen=["blocks.0", "stem"]).paths[0] == "blocks.1.attn.qkv"


def test_what_names_nothing_is_answered_with_the_nearest_name() -> None:
    text = refused("qvk")
    assert "'qvk' names no layer of this model" in text and "Did you mean 'qkv'?" in text
    assert "qkv, proj, fc1, fc2" in text or "proj, qkv, fc1, fc2" in text


@pytest.mark.parametrize(
    ("patterns", "given", "words"),
    [
        (["head"], {}, "head is of the head, which always trains whole"),
        (["blocks.0.attn"], {}, "blocks.0.attn is a Attention"),
        (["blocks.0.attn"], {}, "blocks.0.attn.* names the layers in it"),
        (["norm1"], {}, "blocks.0.norm1 is a LayerNorm"),
        (["blocks.0.attn.qkv"], {"frozen": ["blocks.0"]}, "is in the block blocks.0, which is frozen"),
        (["conv_dw"], {"name": "timm:mobilenetv3_small_100"}, "is a convolution of 16 groups"),
        (["out_proj"], {"name": "torchvision:vit_b_32", "size": 224}, "name the attention"),
        (
            ["qkv"],
            {"rank": 500},
            "12 of 12 layers have a smaller rank by themselves: blocks.0.attn.qkv (192)",
        ),
        ([], {"rank": 500}, "a rank up to 192"),
    ],
)
def test_what_cannot_have_an_adapter_is_named(patterns: list[str], given: dict[str, Any], words: str) -> None:
    assert words in refused(*patterns, **given)


def test_layers_left_out_of_a_pattern_are_told() -> None:
    found = targets(made("timm:mobilenetv3_small_100"), "blocks.1.*")
    assert found.paths and not any("conv_dw" in path for path in found.paths)
    (note,) = found.notes
    assert note.startswith("--lora.targets blocks.1.*: no adapter at 2 layers: blocks.1.0.conv_dw is a conv")


def test_a_layer_that_is_passed_by_is_refused() -> None:
    assert "blocks.0.attn.qkv is never called: the model computes with its weight by itself" in refused(
        "qkv", name="timm:beit_base_patch16_224", size=224
    )


def test_layers_that_share_a_weight_get_no_adapter_neither_one() -> None:
    """Merged into one of them, it would change the other."""
    module = nn.Sequential(nn.Flatten(), *(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 5))
    module[2].weight = module[1].weight
    found = resolve_targets(
        module, find_blocks(module, "4"), (), (), 2, Preprocessing((2, 2), (0.5,) * 3, (0.5,) * 3)
    )
    assert found.paths == ("3",)


def test_when_all_is_frozen_the_way_to_train_the_head_is_named() -> None:
    names = [block.name for block in find_blocks(made("timm:vit_tiny_patch16_224").module, "head")]
    assert "without --lora.rank, --freeze backbone trains the head alone" in refused(frozen=names)


def test_looking_at_a_model_leaves_it_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(7200, 2))
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    blocks = find_blocks(module, "3")
    resolve_targets(module, blocks, (), (), 2, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3))
    assert module.training and not module[1].training and module[0].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(part._forward_pre_hooks for part in module.modules())


class Vision(nn.Module):
    """Image tower of CLIP and a classifier, as logits."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        self.tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig())
        self.head = nn.Linear(768, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x).pooler_output)


def test_clip_vit_b_32_has_294912_numbers_in_adapters_of_rank_8() -> None:
    with torch.device("meta"):
        module = Vision()
        assert sum(p.numel() for p in module.tower.parameters()) == 87_456_000
        blocks = find_blocks(module, "head")
        found = resolve_targets(module, blocks, (), (), 8, Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3))
        assert {path.rpartition(".")[2] for path in found.paths} == {"q_proj", "v_proj"}
        blocks = inject(module, blocks, Lora("lora", 8, 16.0, 0.0, found.paths), 0, "head")
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    assert sum(sizes[name] for block in blocks for name in block.adapters) == 294_912
