"""Checkpoints: complete, intact or passed over, and never lost to a full disk."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fresh
from warmstart.engine import rescue, train
from warmstart.engine.background import Background
from warmstart.engine.checkpoint import load_checkpoint
from warmstart.engine.learner import Learner
from warmstart.engine.state import NotFinite
from warmstart.errors import UserError
from warmstart.run import layout, writer
from warmstart.run.reader import Run

FINETUNE = Callable[..., Run]

DIGEST = """
import json, sys
from hashlib import sha256
from pathlib import Path
from warmstart.engine.checkpoint import load_checkpoint
step, saved = load_checkpoint(Path(sys.argv[1]))
digest = sha256()
for part in (saved.weights, saved.averaged, saved.optimizer[0], *saved.random):
    assert part
    for name in sorted(part):
        digest.update(name.encode() + str(part[name].dtype).encode() + part[name].numpy().tobytes())
digest.update(json.dumps([saved.state.to_json(), saved.optimizer[1], saved.num_threads]).encode())
print(step, digest.hexdigest())
"""


def test_a_fresh_process_reads_back_everything_that_was_in_memory(
    finetune: FINETUNE, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: dict[str, Any] = {}
    real = rescue.run_loop

    def keep(job: Any, state: Any, ema: Any, *rest: Any) -> None:
        real(job, state, ema, *rest)
        memory.update(job=job, state=state, ema=ema)

    monkeypatch.setattr(rescue, "run_loop", keep)
    run = finetune(ema=0.5, optimizer="adamw", epochs=1)
    step, saved = load_checkpoint(run.path)
    module, ema = memory["job"].built.module, memory["ema"]
    for name, tensor in module.state_dict().items():
        assert torch.equal(saved.weights[name], tensor), name
    for name, tensor in ema.state_dict().items():
        assert torch.equal(saved.averaged[name], tensor), name
    assert saved.state == memory["state"] and saved.num_threads == torch.get_num_threads()
    assert step == 3 and int(saved.averaged["n_averaged"]) == 3
    assert {key.split(".")[0] for key in saved.optimizer[0]} == {"exp_avg", "exp_avg_sq", "step"}
    there = fresh.run(run.path, code=DIGEST)
    assert there.returncode == 0, there.stderr
    digest = sha256()
    for part in (saved.weights, saved.averaged, saved.optimizer[0], *saved.random):
        for name in sorted(part):
            digest.update(name.encode() + str(part[name].dtype).encode() + part[name].numpy().tobytes())
    digest.update(json.dumps([saved.state.to_json(), saved.optimizer[1], saved.num_threads]).encode())
    assert there.stdout.split() == ["3", digest.hexdigest()]


def test_the_weights_saved_are_the_ones_measured(finetune: FINETUNE) -> None:
    """The average is what is evaluated, and model.safetensors holds it; the raw weights are beside it."""
    run = finetune(ema=0.9)
    folder = run.checkpoint(6)
    used, state = load_file(folder / layout.MODEL), load_file(folder / layout.STATE_TENSORS)
    assert not torch.equal(used["fc2.weight"], state["raw.fc2.weight"])
    module = torch.nn.Linear(2, 2)
    assert Learner(torch.optim.SGD(module.parameters())).weights_to_use(module) is module


@pytest.mark.parametrize("name", [layout.MODEL, layout.STATE_TENSORS, layout.STATE, layout.MANIFEST])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(
    finetune: FINETUNE, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = finetune()
    path = run.checkpoint(6) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        step, saved = load_checkpoint(run.path)
    assert (step, saved.state.step) == (3, 3)
    assert "the checkpoint of step 6 is damaged" in caplog.text and name in caplog.text


def test_without_an_intact_checkpoint_there_is_nothing_to_resume(finetune: FINETUNE) -> None:
    run = finetune()
    for step in run.checkpoint_steps():
        (run.checkpoint(step) / layout.MODEL).write_bytes(b"")
    with pytest.raises(UserError, match=r"has no intact checkpoint to resume from(.|\n)*finetune --config"):
        load_checkpoint(run.path)


def test_a_run_that_falls_back_comes_to_the_same_end(
    finetune: FINETUNE, settings: Callable[..., Any], interrupt_at: Callable[..., None], tmp_path: Path
) -> None:
    straight = finetune("straight", epochs=3)
    interrupt_at(7)
    with pytest.raises(UserError, match="interrupted at step 7 of 9"):
        train.finetune(settings("broken", epochs=3))
    run = Run(tmp_path / "broken")
    (run.checkpoint(7) / layout.STATE_TENSORS).write_bytes(b"torn")
    resumed = Run(train.resume(str(run.path), {}))
    for name in (layout.MODEL, layout.STATE_TENSORS):
        assert (resumed.checkpoint(9) / name).read_bytes() == (straight.checkpoint(9) / name).read_bytes()
    assert resumed.pointer(layout.BEST) == straight.pointer(layout.BEST)


@pytest.mark.parametrize("full_at", [layout.MODEL, layout.STATE_TENSORS, layout.MANIFEST, layout.LAST])
def test_a_full_disk_stops_the_run_and_costs_no_checkpoint(
    finetune: FINETUNE, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    straight = finetune("straight")
    real = writer.write_whole

    def write_whole(path: Path, content: writer.Content) -> str:
        with monkeypatch.context() as disk:
            text = content[:20] if isinstance(content, bytes) else b""
            if path.name == full_at and "step_00000006" in f"{path.parent.name}{text!r}":
                disk.setattr(os, "fsync", _raise_enospc)  # where a full disk shows itself at the latest
            return real(path, content)

    monkeypatch.setattr(writer, "write_whole", write_whole)
    loaded = settings("run")
    with pytest.raises(UserError, match=r"No space left on device(.|\n)*what was saved before is intact"):
        train.finetune(loaded)
    monkeypatch.undo()
    run = Run(Path(loaded.config.output.output_dir))
    assert run.status["state"] == "failed" and "No space left on device" in run.status["reason"]
    assert not list((run.path / layout.CHECKPOINTS).glob(".*"))
    step, _ = load_checkpoint(run.path)
    assert step == (6 if full_at == layout.LAST else 3)
    resumed = Run(train.resume(str(run.path), {}))
    assert (resumed.checkpoint(6) / layout.MODEL).read_bytes() == (
        straight.checkpoint(6) / layout.MODEL
    ).read_bytes()
    assert resumed.status["state"] == "finished"
    assert resumed.pointer(layout.LAST) == 6
    assert resumed.pointer(layout.BEST) == straight.pointer(layout.BEST)


def _raise_enospc(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_not_rescued_from() -> None:
    """The step after a checkpoint failed as well; going back would go back to what was never written."""
    full = UserError("No space left on device")

    def write() -> None:
        raise full

    for raised, told in ((NotFinite(7, "the loss is", ""), full), (KeyboardInterrupt(), KeyboardInterrupt)):
        with pytest.raises((UserError, KeyboardInterrupt)) as error, Background() as background:
            background.run(write)
            raise raised
        assert error.value is told or error.type is told


def test_only_the_newest_two_and_the_best_are_kept(finetune: FINETUNE) -> None:
    run = finetune(epochs=4, save_every="1steps")
    best = run.pointer(layout.BEST)
    assert set(run.checkpoint_steps()) == {11, 12, best}
    assert run.pointer(layout.LAST) == 12


def test_weights_that_are_not_finite_are_never_saved(finetune: FINETUNE, tmp_path: Path) -> None:
    """The step overflows while its loss, taken before it, is finite: saving now would save NaN."""
    with pytest.raises(UserError) as error:
        finetune(optimizer="sgd", lr=1e39, clip="none", max_steps=1, rescue=1)
    assert str(error.value).startswith("the weights are not finite in step 1\nExpected: finite numbers\n")
    run = Run(tmp_path / "run")
    step, saved = load_checkpoint(run.path)
    assert step == 0 and all(tensor.isfinite().all() for tensor in saved.weights.values())


@pytest.mark.parametrize("num", [1, 3])
def test_so_many_checkpoints_are_kept(finetune: FINETUNE, num: int) -> None:
    run = finetune(epochs=4, save_every="1steps", keep_checkpoints=num)
    steps = set(range(13 - num, 13)) | {run.pointer(layout.BEST)}
    assert set(run.checkpoint_steps()) == steps


def test_checkpoints_by_the_clock(finetune: FINETUNE, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that takes 40 s by the run's clock: with --save-every 1m every other one is saved, or the one after."""
    from warmstart.engine import loop

    now = iter(range(0, 10**6, 40))
    saved = []
    real = loop.save_checkpoint

    class Time:
        perf_counter = staticmethod(lambda: float(next(now)))

    def save(job: Any, state: Any, *rest: Any) -> None:
        saved.append(state.step)
        real(job, state, *rest)

    monkeypatch.setattr(loop, "time", Time)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    run = finetune(epochs=3, save_every="1m", eval_every="100epochs")
    assert run.resolved["pace"]["save_every"] == 0 and run.resolved["pace"]["save_seconds"] == 60.0
    assert saved == [0, 2, 3, 5, 6, 8, 9], "at 80, 120, 200, 240, 320 s and at the end"


def test_a_resume_computes_on_as_many_threads_as_the_run(
    settings: Callable[..., Any],
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.set_num_threads(2)  # the tests of this folder have one; the fixture sets it back
    straight = Run(train.finetune(settings("straight")))
    interrupt_at(4)
    with pytest.raises(UserError, match="interrupted at step 4"):
        train.finetune(settings("resumed"))
    torch.set_num_threads(1)
    with caplog.at_level(logging.INFO, logger="warmstart"):
        resumed = Run(train.resume(str(tmp_path / "resumed"), {}))
    assert (
        torch.get_num_threads() == 1 and "on 2 threads, as the run was started, and not on 1" in caplog.text
    )
    for name in (layout.MODEL, layout.STATE_TENSORS):
        assert (resumed.checkpoint(6) / name).read_bytes() == (straight.checkpoint(6) / name).read_bytes()
    assert load_checkpoint(resumed.path)[1].num_threads == 2
