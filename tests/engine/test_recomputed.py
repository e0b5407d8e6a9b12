"""--gradient-checkpointing changes memory and time, and not one bit of what comes out."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fresh
from warmstart.config import io
from warmstart.engine import train
from warmstart.engine.compiled import CompiledPart, forget_compiled
from warmstart.errors import Interrupted, UserError
from warmstart.inference.recompute import Recomputed
from warmstart.run import layout
from warmstart.run.reader import Run

RGB = {"image_size": 32, "augment": "none", "max_steps": 4, "save_every": "2steps", "optimizer": "sgd"}
# BatchNorm; dropout and drop-path inside of blocks; both, with squeeze-and-excitation, two stages and averaged weights.
MODELS = {
    "resnet18": {"model": "timm:resnet18", "accumulate": 2},
    "vit": {"model": "timm:test_vit", "dropout": 0.5},
    "lora": {"model": "timm:test_vit", "lora.rank": 2, "lora.dropout": 0.3},
    "mobilenetv3": {
        "model": "timm:mobilenetv3_small_050",
        "dropout": 0.3,
        "unfreeze": "0:head,2steps:blocks.4,3steps:all",
        "ema": 0.7,
    },
}


def same_files(one: Run, other: Run) -> bool:
    """Weights, averaged weights and buffers, and the optimizer's state."""
    step = one.pointer(layout.LAST)
    assert step is not None and step == other.pointer(layout.LAST)
    for name in (layout.MODEL, layout.STATE_TENSORS):
        first, second = (load_file(run.checkpoint(step) / name) for run in (one, other))
        if list(first) != list(second) or not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_the_run_is_the_same_to_the_bit(
    name: str,
    settings: Callable[..., io.Loaded],
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {**RGB, **MODELS[name]}
    plain = Run(train.finetune(settings("plain", **given)))
    assert "computed again" not in caplog.text
    with caplog.at_level(logging.INFO, "warmstart"):
        whole = Run(train.finetune(settings("whole", gradient_checkpointing=True, **given)))
    assert "activations are computed again in the backward pass: in " in caplog.text
    assert plain.resolved["recomputed"] == [] and len(whole.resolved["recomputed"]) >= 2
    assert same_files(plain, whole)
    interrupt_at(3)
    with pytest.raises(Interrupted):
        train.finetune(settings("torn", gradient_checkpointing=True, **given))
    train.resume(str(tmp_path / "torn"), {})
    assert same_files(plain, Run(tmp_path / "torn"))


def test_blocks_that_are_frozen_are_left_alone(settings: Callable[..., io.Loaded]) -> None:
    given = {**RGB, "model": "timm:resnet18", "freeze": "stem,layer1", "max_steps": 1}
    run = Run(train.finetune(settings(gradient_checkpointing=True, **given)))
    # Each residual block by itself, not a stage at once.
    assert run.resolved["recomputed"] == [
        f"layer{stage}.{number}" for stage in (2, 3, 4) for number in (0, 1)
    ]


def test_behind_kept_features(settings: Callable[..., io.Loaded]) -> None:
    """What stands in for the frozen blocks in the first pass is not asked again in the second."""
    given = {**RGB, "model": "timm:resnet18", "freeze": "backbone<.5", "feature_cache": "on"}
    plain = Run(train.finetune(settings("plain", **given)))
    assert plain.resolved["features"]["cut"] is not None
    whole = Run(train.finetune(settings("whole", gradient_checkpointing=True, **given)))
    assert same_files(plain, whole)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"image_size": 16}, "builtin:fashion_cnn"),
        ({**RGB, "model": "timm:resnet18", "freeze": "backbone"}, "timm:resnet18"),
    ],
)
def test_nothing_to_compute_again_is_refused(
    settings: Callable[..., io.Loaded], given: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match=f"--gradient-checkpointing: no block of {name} that trains") as error:
        train.finetune(settings(gradient_checkpointing=True, **given))
    assert "--accumulate" in error.value.fix


class Net(nn.Module):
    """A convolution, two residual blocks with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def test_compiled_as_well() -> None:
    """The same gradients and statistics, and code that serves batches of every size."""
    torch.manual_seed(0)
    plain = Net().train()
    model = copy.deepcopy(plain)
    forget_compiled()
    compiled = CompiledPart(model, lambda module: module, "aot_eager")
    part = Recomputed(compiled, list(model.blocks))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (4, 4, 3):
            images = torch.randn(size, 3, 8, 8)
            for each in (plain, part):
                each(images).square().sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)
    for (name, moved), expected in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(moved, expected, msg=name)


PEAK = """
import json, pathlib, re, timm, torch
from warmstart.inference.recompute import Recomputed
torch.set_num_threads(1)
model = timm.create_model("vit_tiny_patch16_224", depth=12).train()
images, peaks = torch.randn(4, 3, 224, 224), []
for part in (Recomputed(model, list(model.blocks)), model):
    part(images).sum().backward()
    model.zero_grad()
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]))
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_step() -> None:
    """Peak memory, KiB, only grows, so the second figure is that of a plain step."""
    done = fresh.run(code=PEAK)
    assert done.returncode == 0, done.stderr
    recomputed, plain = json.loads(done.stdout)
    # 4 images x 12 blocks x about 16 tensors of 197 x 192 numbers; recomputed, one block at a time.
    assert plain - recomputed > 50 * 1024
