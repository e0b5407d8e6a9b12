"""What is measured before a run leaves no trace in it but the decision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from warmstart.config import io
from warmstart.data import workers as cores
from warmstart.engine import probe, train
from warmstart.engine.job import Job
from warmstart.engine.pace import expected_seconds
from warmstart.engine.prepare import prepare
from warmstart.errors import Interrupted
from warmstart.run import layout
from warmstart.run.reader import Run

Settings = Callable[..., io.Loaded]


@pytest.fixture
def small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores wherever the test runs; a run of milliseconds may be measured for three times as long as it takes."""
    monkeypatch.setattr(cores, "num_cores", lambda: 2)
    monkeypatch.setattr(probe, "_MOST_SHARE", 3.0)
    monkeypatch.setattr(probe, "_MOST_BATCHES", 4)


def job_of(loaded: io.Loaded) -> Job:
    return prepare(loaded.config, loaded.origins, Path("nowhere")).job


def everything_random_and_learned(job: Job) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(tensor.clone() for tensor in job.built.module.state_dict().values())]


@pytest.mark.parametrize("given", [{}, {"freeze": "conv*", "feature_cache": "on"}, {"mixup": 0.2}])
def test_measuring_changes_neither_weights_nor_buffers_nor_random_numbers(
    settings: Settings, small_measurements: None, given: dict[str, Any]
) -> None:
    job = job_of(settings(cache="off", **given))
    modes = [module.training for module in job.built.module.modules()]
    gradients = [p.requires_grad for p in job.built.module.parameters()]
    before = everything_random_and_learned(job)
    speeds = probe.speeds_of_workers(job, (0, 1, 2))
    measured = probe.probe(job)
    assert list(speeds) in ([0, 1], [0, 1, 2]) and all(speed > 0 for speed in speeds.values())
    assert measured.seconds_per_step > 0 and measured.seconds_per_eval_image > 0
    assert (measured.seconds_per_feature_image > 0) == (job.kept[0].cut is not None) == ("freeze" in given)
    after = everything_random_and_learned(job)
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
    assert modes == [module.training for module in job.built.module.modules()]
    assert gradients == [p.requires_grad for p in job.built.module.parameters()]


@pytest.mark.parametrize(
    ("unfreeze", "steps"),
    [("0:head,1:all", (3, 3)), ("0:head,2steps:fc1,5steps:all", (2, 3, 1)), ("0:head,plateau:all", (0, 6))],
)
def test_each_stage_is_measured_and_counted_by_its_own_steps(
    settings: Settings, unfreeze: str, steps: tuple[int, ...]
) -> None:
    job = job_of(settings(unfreeze=unfreeze, augment="none", freeze_bn=True))
    measured = probe.probe(job)
    assert len(measured.earlier) == len(steps) - 1 and all(seconds > 0 for seconds, _ in measured.earlier)
    *earlier, last = [10.0**stage for stage in range(len(steps))]
    told = probe.Probe(last, 0.0, 0.0, None, tuple((seconds, 0.0) for seconds in earlier))
    assert expected_seconds(job, told) == sum(num * 10.0**stage for stage, num in enumerate(steps))


def test_a_short_run_is_not_measured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of three steps: less time than the measurement would take."""
    monkeypatch.setattr(cores, "num_cores", lambda: 4)
    run = Run(train.finetune(settings(cache="off", workers="auto")))
    assert run.resolved["workers"] == {"value": 2, "origin": "rule", "images_per_second": None}


def test_decoded_images_and_a_given_number_need_no_measurement(
    settings: Settings, small_measurements: None
) -> None:
    def recorded(**given: Any) -> Any:
        loaded = settings(**given)
        return prepare(loaded.config, loaded.origins, Path("nowhere")).resolved["workers"]

    assert recorded(workers="auto") == {"value": 0, "origin": "rule", "images_per_second": None}
    assert recorded(workers=3, cache="off") == {"value": 3, "origin": "given", "images_per_second": None}


def test_the_measured_number_is_recorded_and_resumed_and_changes_no_bit(
    settings: Settings,
    small_measurements: None,
    interrupt_at: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "warmstart"):
        straight = Run(train.finetune(settings("straight", cache="off", workers=0)))
        assert "decoding threads" not in caplog.text
        interrupt_at(4)
        with pytest.raises(Interrupted):
            train.finetune(settings("measured", cache="off", workers="auto"))
    measured = Run(tmp_path / "measured")
    chosen = measured.resolved["workers"]
    assert chosen["origin"] == "measured" and str(chosen["value"]) in chosen["images_per_second"]
    assert f"decoding threads: {chosen['value']}, measured (images/s by number: 0: " in caplog.text

    used: list[int] = []
    real = train._train
    monkeypatch.setattr(train, "_train", lambda job, *rest: used.append(job.workers) or real(job, *rest))
    # Whatever is recorded is taken: a number that no measurement would give here.
    text = (measured.path / layout.RESOLVED).read_text()
    (measured.path / layout.RESOLVED).write_text(text.replace(f'"value": {chosen["value"]}', '"value": 3', 1))
    interrupt_at(5)
    with pytest.raises(Interrupted):
        train.resume(str(measured.path), {"workers": None})
    train.resume(str(measured.path), {"workers": 1})
    assert used == [3, 1]
    ends = [(run.checkpoint(6) / layout.MODEL).read_bytes() for run in (straight, measured)]
    assert ends[0] == ends[1]
