"""Kill -9 at random moments, and checkpoints damaged at random: a run always ends as if nothing had happened.

A few cases, the same every time, in `make test`; fifty new ones in `make torture`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmstart.config import io
from warmstart.engine import train
from warmstart.errors import Interrupted
from warmstart.run import layout
from warmstart.run.reader import Run
from warmstart.verify.differences import first_difference

IS_TORTURE = bool(os.environ.get("WARMSTART_TORTURE"))
NUM_KILLS, NUM_DAMAGES = (50, 50) if IS_TORTURE else (4, 6)
LONGEST_SECONDS = 60
pytestmark = [pytest.mark.torture, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def dice() -> random.Random:
    return random.Random(None if IS_TORTURE else 5)


@pytest.fixture
def settings(small_settings: dict[str, Any]) -> dict[str, Any]:
    """12 steps in two stages with all that has a state: averages, dropout, a plateau, two decoding threads."""
    return {
        **small_settings,
        "epochs": 4,
        "save_every": "1steps",
        "eval_every": "2steps",
        "log_every": "1steps",
        "unfreeze": "0:head,2:all",
        "augment": "strong",
        "dropout": 0.3,
        "ema": 0.7,
        "scheduler": "plateau",
        "scheduler_patience": 0,
        "workers": 2,
        "cache": "off",
    }


def work(values: dict[str, Any]) -> None:
    """What a person does after each crash: resume, or start again where there is no run yet."""
    import torch

    torch.set_num_threads(1)
    logging.getLogger("warmstart").disabled = True
    folder = Path(values["output_dir"])
    if layout.is_run(folder):
        train.resume(str(folder), {})
    else:
        shutil.rmtree(folder, ignore_errors=True)
        train.finetune(io.load(values))


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint, or a pointer to one, is half written at this moment."""
    root = folder / layout.CHECKPOINTS
    return root.is_dir() and any(entry.name.startswith(".") for entry in root.iterdir())


def test_killed_at_any_moment(settings: dict[str, Any], dice: random.Random, tmp_path: Path) -> None:
    """Every other kill waits for the middle of a checkpoint's writing."""
    straight = Run(train.finetune(io.load({**settings, "output_dir": str(tmp_path / "straight")})))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmstart.engine.train", "warmstart.models.builtin.fashion_cnn"])
    seconds = float(straight.status["seconds"])
    killed = in_write = runs = 0
    while killed < NUM_KILLS or not runs:
        folder = tmp_path / f"run-{runs}"
        process = context.Process(target=work, args=({**settings, "output_dir": str(folder)},))
        process.start()
        end = time.monotonic() + LONGEST_SECONDS
        if killed < NUM_KILLS and killed % 2:
            while process.is_alive() and not is_writing(folder) and time.monotonic() < end:
                time.sleep(0.0005)
        elif killed < NUM_KILLS:
            process.join(dice.uniform(0, 1.5 * seconds))
        else:
            process.join(LONGEST_SECONDS)
        was_writing = is_writing(folder)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), f"resuming after {killed} kills failed"
        if process.exitcode == 0:
            difference = first_difference(straight, Run(folder))
            assert difference is None, f"after {killed} kills: {difference.text()}"
            runs += 1
        else:
            killed += 1
            in_write += was_writing
    assert in_write, "no kill hit a checkpoint that was being written"


@pytest.fixture
def interrupted(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Run, Callable[[str], Path]]:
    """A straight run, and copies of one that was interrupted after step 7."""
    from warmstart.engine.state import TrainState

    straight = Run(train.finetune(io.load({**settings, "output_dir": str(tmp_path / "straight")})))
    count = TrainState.advance

    def advance(state: TrainState, steps_per_epoch: int) -> None:
        count(state, steps_per_epoch)
        if state.step == 7:
            os.kill(os.getpid(), 15)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainState, "advance", advance)
        train.finetune(io.load({**settings, "output_dir": str(tmp_path / "stopped")}))

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "stopped", tmp_path / name))

    return straight, copy


def damage(checkpoint: Path, dice: random.Random) -> str:
    """Cut a file, flip a bit of it, lose it, empty it; or lose all but the folder."""
    path = checkpoint / dice.choice([layout.MODEL, layout.STATE_TENSORS, layout.STATE, layout.MANIFEST])
    content = bytearray(path.read_bytes())
    kind = dice.choice(["cut", "flip", "lose", "empty", "lose all"])
    if kind == "cut":
        path.write_bytes(content[: dice.randrange(len(content))])
    elif kind == "flip":
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(content)
    elif kind == "lose":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        for entry in checkpoint.iterdir():
            entry.unlink()
    return f"{kind} {path.name}"


def test_a_damaged_newest_checkpoint_costs_one_step(
    interrupted: tuple[Run, Callable[[str], Path]], dice: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    """It falls back one and says so, ends the same, and keeps as many whole checkpoints as it should."""
    straight, copy = interrupted
    for number in range(NUM_DAMAGES):
        run = Run(copy(f"damaged-{number}"))
        what = damage(run.checkpoint(7), dice)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="warmstart"):
            resumed = Run(train.resume(str(run.path), {}))
        assert "the checkpoint of step 7 is damaged" in caplog.text, what
        difference = first_difference(straight, resumed)
        assert difference is None, f"{what}: {difference.text()}"
        assert resumed.checkpoint_steps() == straight.checkpoint_steps()
        shutil.rmtree(run.path)


def test_a_missing_newest_checkpoint_is_no_loss(interrupted: tuple[Run, Callable[[str], Path]]) -> None:
    straight, copy = interrupted
    run = Run(copy("without"))
    shutil.rmtree(run.checkpoint(7))
    assert first_difference(straight, Run(train.resume(str(run.path), {}))) is None


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(
    interrupted: tuple[Run, Callable[[str], Path]],
) -> None:
    straight, copy = interrupted
    run = Run(copy("early"))
    for step in run.checkpoint_steps():
        shutil.rmtree(run.checkpoint(step))
    for name in (layout.LAST, layout.BEST):
        (run.path / layout.CHECKPOINTS / name).unlink()
    assert first_difference(straight, Run(train.resume(str(run.path), {}))) is None
