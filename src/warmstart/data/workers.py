"""Threads that decode: the libraries release the interpreter's lock, so that threads suffice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from time import monotonic
from typing import Any, ParamSpec, TypeVar

import cv2

from warmstart.data.samples import Samples

P = ParamSpec("P")
T = TypeVar("T")
_Call = tuple[Future[Any], Callable[[], Any]]
_MAX_THREADS = 8  # more threads wait for each other's Python
_GRACE = 5.0  # seconds that the end of a pool waits for its threads
_CANDIDATES = (0, 1, 2, 4, 8)
TIE = 0.03  # a gain that is not worth more threads, nor can be told from chance


@dataclass(frozen=True)
class WorkersChoice:
    """The number of decoding threads; `origin` is given, rule or measured (images per second by number)."""

    value: int
    origin: str
    images_per_second: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def fastest(cls, speeds: Mapping[int, float]) -> WorkersChoice:
        """Of measured images per second by number of threads; the fewest of those that are equally fast."""
        enough = max(speeds.values()) * (1 - TIE)
        value = min(number for number, speed in speeds.items() if speed >= enough)
        return cls(value, "measured", {str(number): round(speed, 1) for number, speed in speeds.items()})


def candidates(samples: Samples, has_accelerator: bool, num_processes: int) -> tuple[int, ...]:
    """Numbers of threads that are worth a measurement, from few to many; none where there is nothing to choose."""
    cores = num_cores() // num_processes
    if cores < 2 or (samples.pixels.decoded and not has_accelerator):
        return ()
    return tuple(number for number in _CANDIDATES if number <= cores)


def resolve_workers(
    setting: int | str, samples: Samples, has_accelerator: bool = False, num_processes: int = 1
) -> int:
    """`--workers` as a number without a measurement; `auto` leaves two cores to the model, and needs none for
    decoded pixels.

    With an accelerator there is time to prepare even those ahead. `num_processes` on this machine share
    its cores.
    """
    if setting != "auto":
        return int(setting)
    if samples.pixels.decoded and not has_accelerator:
        return 0
    return max(0, min(_MAX_THREADS, num_cores() // num_processes - 2))


def scan_workers(setting: int | str) -> int:
    """Threads while nothing else runs: all cores by default."""
    return min(_MAX_THREADS, num_cores()) if setting == "auto" else int(setting)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def calm_opencv() -> None:
    """From now on OpenCV adds no threads of its own: they would compete with torch's, which costs a sixth of a step."""
    cv2.setNumThreads(1)


class DecodePool(Executor):
    """Threads that decode. One that hangs can be given up: another takes its place, and nobody waits for it.

    Python's own pool has neither, and at the end of the process waits for all of its threads.
    """

    def __init__(self, workers: int) -> None:
        calm_opencv()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._num_given_up = 0
        for _ in range(workers):
            self._add()

    def submit(self, function: Callable[P, T], /, *arguments: P.args, **settings: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, partial(function, *arguments, **settings)))
        return future

    def again(
        self, thread: Thread, function: Callable[P, T], /, *arguments: P.args, **settings: P.kwargs
    ) -> Future[T]:
        """Give up a thread that hangs; the one in its place begins with this call, before all that waits."""
        self._threads.remove(thread)
        self._num_given_up += 1
        future: Future[T] = Future()
        self._add((future, partial(function, *arguments, **settings)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        while cancel_futures:
            try:
                call = self._calls.get_nowait()
            except Empty:
                break
            if call is not None:
                call[0].cancel()
        for _ in range(len(self._threads) + self._num_given_up):
            self._calls.put(None)
        end = monotonic() + _GRACE
        for thread in self._threads if wait else ():  # one that hangs now reads what nobody waits for
            thread.join(max(0.0, end - monotonic()) if cancel_futures else None)

    def _add(self, first: _Call | None = None) -> None:
        thread = Thread(
            target=self._work, args=(first,), name=f"warmstart-decode-{len(self._threads)}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _work(self, call: _Call | None) -> None:
        while call or (current_thread() in self._threads and (call := self._calls.get()) is not None):
            future, compute = call
            call = None
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = compute()
            except BaseException as error:  # it is raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)
