"""An adapter folder finds its base: a folder of transformers that peft names, and bases that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.models.adapters.files import CONFIG, WEIGHTS
from warmstart.models.build import BuiltModel, build, no_adapters

# What peft asks of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """What peft saves of a ViT of transformers for three new classes, and the logits there."""
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    again: Any = transformers.ViTForImageClassification.from_pretrained(tmp_path / "vit")
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", modules_to_save=["classifier"])
    adapted = get_peft_model(again, lora).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        logits = adapted(IMAGES).logits
    adapted.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter", logits


def read(folder: Path, name: str | None = None, **given: Any) -> BuiltModel:
    return build(ModelConfig(name=name, weights=str(folder)), {"image_size": (32, 32)}, None, 0, **given)


def rename_base(folder: Path, base: str | None) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": base}))


def test_the_folder_that_peft_names_is_the_base(saved: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = saved
    built = read(folder)
    with torch.no_grad():
        torch.testing.assert_close(built.module.eval()(IMAGES), wanted, rtol=1e-4, atol=1e-5)
        plain = read(folder, choose=no_adapters)
        assert plain.lora is None and not [n for n in plain.module.state_dict() if ".lora_" in n]
        torch.testing.assert_close(plain.module.eval()(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    assert built.lora is not None and built.lora.kind == "lora" and not built.names_known
    assert any("which no record of ours tells from other bases" in note for note in built.notes)


def test_a_base_that_is_named_beside_it(saved: tuple[Path, torch.Tensor]) -> None:
    folder, wanted = saved
    rename_base(folder, None)
    with pytest.raises(UserError, match="names no base"):
        read(folder)
    built = read(folder, f"hf:{folder.parent / 'vit'}")
    with torch.no_grad():
        torch.testing.assert_close(built.module.eval()(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    rename_base(folder, "elsewhere")
    with pytest.raises(UserError, match="names 'elsewhere' as its base"):
        read(folder)


def test_an_adapter_without_a_head_or_of_other_shapes_is_refused(saved: tuple[Path, torch.Tensor]) -> None:
    folder, _ = saved
    tensors = load_file(folder / WEIGHTS)
    headless = {name: tensor for name, tensor in tensors.items() if ".classifier." not in name}
    save_file(headless, folder / WEIGHTS)
    with pytest.raises(UserError, match="holds no classifier"):
        read(folder)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.zeros(5, 4)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"does not fit .*vit: at .* B \(5, 4\), and the base has \(16, 16\)"):
        read(folder)
