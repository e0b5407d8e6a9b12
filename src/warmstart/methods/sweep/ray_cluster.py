"""Trials as Ray tasks: Ray says where a process is started, everything else is as on this machine.

The nodes of a cluster must see the sweep's folder, the config and the data at the same paths. Ray ends what it started
when this process ends (its workers' children too), so nothing is left running.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from warmstart.errors import UserError
from warmstart.methods.trials.process import Launch, command_of, environment_of
from warmstart.methods.trials.trial import Slot, Trial

_ANSWERS_WITHIN = 600.0  # seconds for a node that is asked how its process does


class _Started:
    """Lives on a node, with the process that it has started there."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd: str, told: str) -> None:
        with open(told, "ab") as file:  # noqa: PTH123 (a path of that node)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=cwd,
                env={**os.environ, **environment},
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class _Placed:
    """The handle of such a process; it waits in Ray's queue until a node has room for it."""

    def __init__(self, actor: Any) -> None:
        self._actor, self._answer = actor, None
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._answer = self._answer or self._actor.poll.remote()
            ready, _ = ray.wait([self._answer], timeout=0)
            if ready:
                self._code, self._answer = _answer_of(self._answer), None
                if self._code is not None:
                    ray.kill(self._actor)
        return self._code

    def terminate(self) -> None:
        if self._code is None:
            self._actor.terminate.remote()

    def kill(self) -> None:
        if self._code is None:
            ray.kill(self._actor)
            self._code = -9


def _answer_of(answer: Any) -> int | None:
    try:
        return ray.get(answer, timeout=_ANSWERS_WITHIN)
    except ray.exceptions.RayActorError:
        return -9  # the node is gone, or ended it


@contextmanager
def cluster(address: str | None, num_slots: int) -> Iterator[Launch]:
    """A launcher on the cluster at `address`, or on a local one with so many slots.

    Raises:
        UserError: nobody answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    own = {"num_cpus": num_slots} if address is None else {"address": address}
    try:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            "--ray-address HOST:PORT, or auto",
        ) from None
    try:
        yield _launch
    finally:
        ray.shutdown()


def _launch(trial: Trial, slot: Slot) -> _Placed:
    device = trial.config.train.device
    has_gpu = device.startswith("cuda") or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    actor = ray.remote(num_cpus=1, num_gpus=1 if has_gpu else 0)(_Started)
    told = str(trial.beside(".txt").absolute())
    return _Placed(
        actor.remote(command_of(trial, slot), environment_of(slot), str(trial.cwd.absolute()), told)
    )
