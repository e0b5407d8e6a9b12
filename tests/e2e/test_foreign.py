"""Files written by other libraries load as they are and give the same logits as in the library that wrote them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import warmstart as ws
from warmstart.config.schema import ModelConfig
from warmstart.models.build import BuiltModel, build

pytestmark = pytest.mark.filterwarnings("ignore")  # the other libraries warn about themselves
NAMES = ("ant", "bee", "cat")


def timm_model(name: str = "test_vit", num_classes: int = 3) -> Any:
    """A tiny model with running statistics that are not those of a fresh one."""
    torch.manual_seed(3)
    module = timm.create_model(name, num_classes=num_classes)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d) and child.running_mean is not None:
            child.running_mean.normal_(0, 0.1)
    return module.eval()


def open_file(path: Path, name: str | None = None) -> BuiltModel:
    return build(ModelConfig(name=name, weights=str(path)), {}, None, seed=0)


def assert_same_logits(built: BuiltModel, original: nn.Module, size: int = 160) -> None:
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs: Any = original.eval()(images)
        mine = built.module.eval()(images)
    theirs = theirs if isinstance(theirs, Tensor) else theirs.logits
    assert mine.shape == theirs.shape and torch.allclose(mine, theirs, rtol=0, atol=1e-6)


def test_timm_checkpoint_saver(tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    module = timm_model("test_resnet")
    average = ModelEmaV3(module)
    optimizer = torch.optim.AdamW(module.parameters())
    saver = CheckpointSaver(
        module,
        optimizer,
        args=Namespace(model="test_resnet", lr=1e-3),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=71.5)
    for file in ("model_best.pth.tar", "last.pth.tar", "checkpoint-0.pth.tar"):
        built = open_file(tmp_path / file)
        assert built.name == "timm:test_resnet" and built.classes == ("0", "1", "2")
        assert not built.names_known
        assert_same_logits(built, module)


def test_lightning_checkpoint(tmp_path: Path) -> None:
    import lightning.pytorch as lightning
    from torchmetrics.classification import MulticlassConfusionMatrix

    class Classifier(lightning.LightningModule):
        def __init__(self, lr: float, class_names: list[str]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = timm_model()
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
            self.train_metric = MulticlassConfusionMatrix(3)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            outputs = self.model(batch[0])
            self.train_metric.update(outputs, batch[1])
            loss: Tensor = self.criterion(outputs, batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    task = Classifier(0.1, list(NAMES))
    before = timm_model()
    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 160, 160), torch.tensor([0, 1, 2, 0]))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, torch.utils.data.DataLoader(data, batch_size=2))
    [file] = tmp_path.rglob("*.ckpt")
    built = open_file(file, "timm:test_vit")
    assert built.classes == NAMES and built.names_known
    assert_same_logits(built, task.model)
    with pytest.raises(AssertionError):  # the fit has moved the weights: the comparison can fail
        assert_same_logits(built, before)


def test_torchvision_state_dict(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(5)
    module = models.resnet18(weights=None, num_classes=10)
    torch.save(module.state_dict(), tmp_path / "resnet18.pth")
    built = open_file(tmp_path / "resnet18.pth", "torchvision:resnet18")
    assert len(built.classes) == 10
    assert_same_logits(built, module, 64)


def wrapped(folder: Path, **config: Any) -> Any:
    """A timm model as transformers saves it: `timm_model.` before all names, the rest in config.json."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    image = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "crop_pct": 1.0}
    stated = {
        "pretrained_cfg": timm_model().pretrained_cfg | image | {"tag": None},
        "num_classes": 3,
    } | config
    torch.manual_seed(7)
    module = TimmWrapperForImageClassification(
        TimmWrapperConfig.from_dict({"architecture": "test_vit", **stated})
    )
    module.save_pretrained(folder)
    return module.eval()


def test_transformers_timm_wrapper(tmp_path: Path) -> None:
    module = wrapped(tmp_path / "model", label_names=list(NAMES))
    for place in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        built = open_file(place)
        assert (built.name, built.classes, built.names_known) == ("timm:test_vit", NAMES, True)
        used = built.preprocessing
        assert used.image_size == (160, 160) and used.crop_pct == 1.0
        assert used.mean == (0.4, 0.5, 0.6) and used.std == (0.2, 0.25, 0.3)
        assert_same_logits(built, module)


def test_transformers_label_names(tmp_path: Path) -> None:
    wrapped(tmp_path / "id2label", id2label={0: "cat", 1: "bee", 2: "ant"})
    assert open_file(tmp_path / "id2label").classes == ("cat", "bee", "ant")
    wrapped(tmp_path / "nameless")
    assert not open_file(tmp_path / "nameless").names_known


def test_transformers_shards(tmp_path: Path) -> None:
    module = wrapped(tmp_path / "whole", label_names=list(NAMES))
    module.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    built = open_file(tmp_path / "shards")
    assert built.classes == NAMES
    assert_same_logits(built, module)


def test_timm_hub_folder(tmp_path: Path) -> None:
    module = timm_model()
    config = {"label_names": list(NAMES), "num_classes": 3}
    timm.models.save_for_hf(module, tmp_path, model_config=config, safe_serialization=True)
    built = open_file(tmp_path)
    assert (built.name, built.classes) == ("timm:test_vit", NAMES)
    assert_same_logits(built, module)


def test_evaluate_gives_their_logits_for_pixels(tmp_path: Path) -> None:
    """From files of images to numbers: names, size, mean and std all come from what transformers wrote."""
    module = wrapped(tmp_path / "model", label_names=list(NAMES))
    rng = np.random.default_rng(0)
    pixels = {name: rng.integers(0, 256, (2, 160, 160, 3), np.uint8) for name in NAMES}
    for name, images in pixels.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "data" / name / f"{number}.png")
    result = ws.evaluate(str(tmp_path / "model"), str(tmp_path / "data"))
    images = torch.from_numpy(np.concatenate([pixels[name] for name in NAMES])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]])[:, :, None, None]
    with torch.no_grad():
        theirs = module((images - mean) / std).logits.numpy()
    assert result.classes == NAMES and sorted(result.targets.tolist()) == [0, 0, 1, 1, 2, 2]
    order = [
        sorted(f"{n}/{i}.png" for n in NAMES for i in range(2)).index(identity) for identity in result.ids
    ]
    np.testing.assert_allclose(result.outputs, theirs[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\ufeff{}"])
def test_a_broken_config_json_is_named(text: str, tmp_path: Path) -> None:
    wrapped(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ws.UserError, match=r"config\.json is not JSON"):
        open_file(tmp_path, "timm:test_vit")
