"""--compile changes the speed of the steps and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from warmstart.config import io
from warmstart.engine import train
from warmstart.engine.compiled import CompiledPart, check_compiler, forget_compiled
from warmstart.errors import Interrupted, UserError
from warmstart.inference.cut import Cut, Tail, prefix_features
from warmstart.inference.find_cut import find_cut
from warmstart.models.builtin.fashion_cnn import FashionCNN
from warmstart.run import layout
from warmstart.run.reader import Run


@pytest.fixture(scope="module")
def compiler() -> None:
    """Skips where there is none, with torch's own reason."""
    try:
        check_compiler(torch.device("cpu"))
    except UserError as error:
        pytest.skip(error.happened)


# 25 images: a window of 8 and, at the end of an epoch, shorter ones. Unfreezing has two stages; the frozen part
# of the other run is computed once, and the tail behind it is what is compiled.
CASES = {
    "unfrozen": {"unfreeze": "0:head,1:all", "ema": 0.7, "augment": "none"},
    "features": {"freeze": "conv*", "feature_cache": "on", "augment": "none", "batch_size": 7},
}


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_run_is_the_same_run(
    name: str,
    compiler: None,
    settings: Callable[..., io.Loaded],
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {**CASES[name], "dropout": 0.0, "optimizer": "sgd"}
    plain = Run(train.finetune(settings("plain", **given)))
    assert "compiled" not in caplog.text
    with caplog.at_level(logging.INFO, "warmstart"):
        whole = Run(train.finetune(settings("compiled", compile=True, **given)))
    assert "training steps are compiled" in caplog.text
    last = plain.pointer(layout.LAST)
    assert last is not None
    for file in (layout.MODEL, layout.STATE_TENSORS):
        expected, found = (load_file(run.checkpoint(last) / file) for run in (plain, whole))
        assert found.keys() == expected.keys()
        floats = [key for key in expected if expected[key].is_floating_point()]
        assert floats and all(torch.allclose(found[key], expected[key], atol=1e-4) for key in floats)
    assert whole.resolved["features"] == plain.resolved["features"]

    interrupt_at(4)
    with pytest.raises(Interrupted):
        train.finetune(settings("resumed", compile=True, **given))
    resumed = Run(train.resume(str(tmp_path / "resumed"), {}))
    manifests = [json.loads((run.checkpoint(last) / layout.MANIFEST).read_text()) for run in (whole, resumed)]
    sums = [manifest["files"][layout.MODEL]["sha256"] for manifest in manifests]
    assert sums[0] == sums[1]


def test_without_a_compiler_nothing_is_started(
    settings: Callable[..., io.Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setenv("CXX", "no-such-compiler")  # Windows
    # Not by monkeypatch: what it puts back into this module is no setting any more, and nothing compiles after it.
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UserError) as error:
        train.finetune(settings(compile=True))
    assert error.value.happened.startswith("--compile does not work here: InvalidCxxCompiler")
    assert "no-such-compiler" in error.value.happened
    assert error.value.fix == "install it, or train without --compile"
    assert not (tmp_path / "run").exists()


def test_short_batches_share_one_compilation_and_a_new_stage_has_its_own() -> None:
    """Graphs are counted by a backend that runs them as they are: no compiler is needed for that."""
    from torch._dynamo.testing import CompileCounter

    names = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "fc1", "bn_fc", "fc2")
    model = FashionCNN(3, dropout=0.0)

    def train_from(place: int) -> None:
        model.train()
        for number, name in enumerate(names):
            model.get_submodule(name).requires_grad_(number >= place).train(number >= place)

    def losses(part: nn.Module, inputs: torch.Tensor, sizes: tuple[int, ...]) -> list[float]:
        found = []
        for size in sizes:
            loss = part(inputs[:size]).square().sum()
            loss.backward()
            found.append(float(loss.detach()))
        return found

    images = torch.randn(8, 1, 16, 16)
    for is_cut in (False, True):
        place = 2
        train_from(place)
        cut = find_cut(model, names[:place], names[place:], images, lambda: train_from(2))
        train_from(place)

        def part_of(module: nn.Module, cut: Cut = cut, is_cut: bool = is_cut) -> nn.Module:
            return Tail(module, cut, (1, 16, 16)) if is_cut else module

        inputs = prefix_features(model, cut, images).clone() if is_cut else images
        counter = CompileCounter()
        part = CompiledPart(model, part_of, counter)
        assert list(model.state_dict()) == list(FashionCNN(3).state_dict())
        for stage, first in enumerate((6, place), start=1):
            forget_compiled()
            train_from(first)
            compiled = losses(part, inputs, (8, 8, 5, 3, 8, 4))
            assert counter.frame_count == stage
            trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
            assert {name.partition(".")[0] for name in trained} == set(names[first:])
            model.zero_grad()
            plain = losses(part_of(model), inputs, (8, 8, 5, 3, 8, 4))
            assert compiled == pytest.approx(plain, rel=1e-5)
            model.zero_grad()
