"""The rows of a batch, read by several threads; a read that hangs is tried once more, then left out like a bad file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Thread, current_thread

from warmstart.console import log
from warmstart.data.unreadable import Unreadable
from warmstart.data.workers import DecodePool
from warmstart.errors import UserError

_PATIENCE = 120.0  # seconds for one image, twice: what takes longer will not come
_LOOKS = 4  # within this time


class Piece:
    """Rows of a batch that one thread reads, one after the other."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.row = -1  # which is being read, since when, and by whom; -1: none
        self.since = 0.0
        self.thread: Thread | None = None
        self.is_given_up = False  # its thread must not touch the batch any more

    def begin(self, row: int) -> None:
        self.since, self.thread, self.row = time.monotonic(), current_thread(), row

    def end(self) -> None:
        self.row = -1

    @property
    def hangs(self) -> bool:
        return self.row >= 0 and time.monotonic() - self.since > _PATIENCE


Fill = Callable[[Piece], list[int]]  # reads the rows of a piece into the batch; those that are left out


class Fetch:
    """One batch on its way: `fill` reads its rows, in `parts`; `name` says which image a row is."""

    def __init__(
        self,
        pool: DecodePool,
        fill: Fill,
        parts: Sequence[Sequence[int]],
        name: Callable[[int], str],
        unreadable: Unreadable | None,
    ) -> None:
        self._pool, self._fill, self._name, self._unreadable = pool, fill, name, unreadable
        self._hung: Counter[int] = Counter()
        self._left_out: list[int] = []
        self._going: list[tuple[Piece, Future[list[int]]]] = []
        for rows in parts:
            self._start(rows)

    def left_out(self) -> list[int]:
        """Wait until every row is read; those that are not.

        Raises:
            UserError: whatever `fill` raises; a row hangs twice, and none may be left out (`unreadable` is None).
        """
        while True:
            _, pending = wait([future for _, future in self._going], _PATIENCE / _LOOKS)
            if not pending:
                return [*self._left_out, *(row for _, future in self._going for row in future.result())]
            for piece, future in list(self._going):
                if future in pending and piece.hangs:
                    self._going.remove((piece, future))
                    self._again(piece)

    def _start(self, rows: Sequence[int], instead_of: Thread | None = None) -> None:
        """By whoever is free, or by a new thread instead of one that hangs: others may hang on later batches."""
        piece = Piece(rows)
        if instead_of is None:
            future = self._pool.submit(self._fill, piece)
        else:
            future = self._pool.again(instead_of, self._fill, piece)
        self._going.append((piece, future))

    def _again(self, piece: Piece) -> None:
        """Read the rows in another thread; without the one that hangs, if it did so before."""
        row, piece.is_given_up = piece.row, True
        thread = piece.thread
        assert thread is not None, "a piece that hangs has begun"
        if row < 0:  # it has come just now, too late
            self._start(piece.rows, thread)
            return
        self._hung[row] += 1
        if self._hung[row] == 1:
            log.warning("nothing has come for %g s from reading %s: once more", _PATIENCE, self._name(row))
            self._start(piece.rows, thread)
            return
        if self._unreadable is None:
            raise UserError(
                f"reading hangs, for {2 * _PATIENCE:g} s now, at {self._name(row)}",
                "a disk or network that answers",
                "`warmstart resume` when it does",
            )
        self._unreadable.add(self._name(row), f"reading it hangs, {_PATIENCE:g} s, twice")
        self._left_out.append(row)
        self._start([other for other in piece.rows if other != row], thread)
