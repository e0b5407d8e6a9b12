"""Several processes, one run: the one door to torch.distributed.

Whoever launches them (torchrun, accelerate, SLURM) sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
Every process reads the same data and holds the whole model. A batch is divided among them, the sums of
their gradients are added, and each takes the same step; only the first one writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from warmstart import console
from warmstart.errors import ReportedElsewhere, UserError
from warmstart.run import writer

T = TypeVar("T")

_BUCKET = 8_000_000  # elements that are sent at once: few messages, and little memory besides the gradients
_PATIENCE = timedelta(hours=2)  # the others wait while the first one scans a large data set
_FAILURE = "failure"
_LOOKS_FOR_REASON = 30
_numbers = count()  # a program may join several times; the store keeps the words of each meeting apart


@dataclass(frozen=True)
class World:
    """The processes of a run; alone, everything here does nothing or hands back what it got."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    store: Any = None  # where a dying process leaves its reason

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def part(self, indices: np.ndarray) -> np.ndarray:
        """This process's share of a micro-batch: none is left a single item, as norm layers cannot learn from one."""
        if self.size == 1:
            return indices
        pieces = np.array_split(indices, max(1, min(self.size, len(indices) // 2)))
        return pieces[self.rank] if self.rank < len(pieces) else indices[:0]

    def own(self, device: torch.device) -> torch.device:
        """This process's GPU where each has one."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag whether it is set in some process. On the host: nothing waits for a device."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes; equal to the bit in all of them."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        if self.size > 1 and tensors:
            self.add_up(tensors)
            torch._foreach_div_(list(tensors), self.size)

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the first process alone; its UserError is everybody's."""
        if self.size == 1:
            return work()
        value, error = None, None
        if self.is_main:
            try:
                value = work()
            except UserError as own:
                error = own
        self._raise_first([error])
        return self.share(value)  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> T:
        """Every process does the `work`; a UserError of one ends all of them, told by the first."""
        if self.size == 1:
            return work()
        value, error = None, None
        try:
            value = work()
        except UserError as own:
            error = own
        self._raise_first([error])
        return value  # type: ignore[return-value]

    def _raise_first(self, own: list[UserError | None]) -> None:
        errors = self.gather(str(own[0]) if own[0] is not None else None)
        failed = next((rank for rank, error in enumerate(errors) if error is not None), None)
        if failed is None:
            return
        if self.is_main:
            raise own[0] or UserError(f"process {failed} of {self.size}: {errors[failed]}")
        raise ReportedElsewhere(str(errors[failed]))

    def check_equal_weights(self, module: nn.Module) -> None:
        """Every process must hold the same weights, to the bit: what differs once drifts apart from then on."""
        if self.size == 1:
            return
        digests = self.gather({name: _digest(tensor) for name, tensor in _weights(module)})
        differing = [name for name in digests[0] if any(other[name] != digests[0][name] for other in digests)]
        assert not differing, (
            f"{len(differing)} weights differ between processes, the first is {differing[0]}"
        )

    def start_equal(self, module: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.size > 1:
            for _, tensor in _weights(module):
                dist.broadcast(tensor.detach(), src=0)

    def explain(self, error: BaseException, run: Path) -> BaseException:
        """What ended this process: the `error` itself, or, where a connection broke, what another one died of.

        The first process looks for the reason that the other left, and tells it to the user.
        """
        if self.size == 1 or (self.is_main and not _is_connection(error)):
            return error
        if not self.is_main:
            if not _is_connection(error):
                self.store.set(
                    _FAILURE, f"process {self.rank} of {self.size}: {type(error).__name__}: {error}"
                )
            return error
        reason = f"another of the {self.size} processes ended without a word (killed, or out of memory?)"
        for _ in range(_LOOKS_FOR_REASON):  # the connection may break a moment before the reason is there
            if self.store.check([_FAILURE]):
                reason = self.store.get(_FAILURE).decode()
                break
            time.sleep(0.1)
        return UserError(
            reason,
            "every process to live as long as the run",
            f"start them again with `warmstart resume {run}`",
        )


SOLO = World()


@contextmanager
def join() -> Iterator[World]:
    """The processes that were launched together; alone where nobody launched several.

    In all but the first one nothing is printed and nothing written while the context lasts.

    Raises:
        UserError: the launcher's variables are incomplete, or the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or dist.is_initialized():
        yield _existing() if dist.is_initialized() else SOLO
        return
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set",
            "a launcher that sets them, such as torchrun --nproc_per_node 2 -m warmstart finetune ...",
            "for one process: unset WORLD_SIZE",
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=5))))
        store = dist.PrefixStore(f"warmstart-{next(_numbers)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the {size} processes did not find each other: {error}",
            "all of them started, and MASTER_ADDR:MASTER_PORT reachable from each",
        ) from error
    try:
        with _silent_unless_first(rank):
            yield World(rank, size, _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE", 1), store)
    finally:
        dist.destroy_process_group()


@contextmanager
def _silent_unless_first(rank: int) -> Iterator[None]:
    if rank == 0:
        yield
        return
    with writer.muted(), console.silent():
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError):
                raise ReportedElsewhere(error.happened) from error
            if _is_connection(error):
                raise ReportedElsewhere(str(error)) from error
            raise


def _existing() -> World:
    """Processes that the caller's own program has joined already."""
    raise UserError(
        "torch.distributed is already initialised in this process",
        "a process that has not joined a group yet: warmstart joins and leaves by itself",
        "call dist.destroy_process_group() first, or start with `torchrun -m warmstart`",
    )


def _number(name: str, default: int = 0) -> int:
    return int(os.environ.get(name, default))


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type together, each bucket as large as is sent at once."""
    bucket: list[torch.Tensor] = []
    for tensor in sorted(tensors, key=lambda t: str(t.dtype)):
        is_full = sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if bucket and (is_full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and the statistics of norms. Counters are left out: who got no item has counted less."""
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def _is_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection", "peer"))
    )
