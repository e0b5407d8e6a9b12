"""What people read while a command works: log lines, tables and one progress bar, all on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

log = logging.getLogger("warmstart")
_OURS = "_warmstart"


def setup() -> None:
    """Show warmstart's log lines on stderr; called by every verb, since stderr may have been replaced.

    On a terminal rich writes them above a running progress bar; elsewhere they are plain lines.
    """
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    for handler in [h for h in log.handlers if getattr(h, _OURS, False)]:
        log.removeHandler(handler)
    log.propagate = bool(logging.getLogger().handlers)  # a host program's log gets the lines too
    console = Console(stderr=True, highlight=False)
    handler = _rich_handler(console) if console.is_terminal else logging.StreamHandler(sys.stderr)
    setattr(handler, _OURS, True)
    handler.setFormatter(_PlainFormatter())
    log.addHandler(handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Only warnings and errors, for verbs that call other verbs and tell their own story."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def silent() -> Iterator[None]:
    """Nothing at all, for a process whose neighbour tells the same story."""
    handlers, log.handlers = log.handlers, []  # without a handler for a terminal there is no bar either
    log.disabled = True
    try:
        yield
    finally:
        log.handlers, log.disabled = handlers, False


def _rich_handler(console: Console) -> logging.Handler:
    return RichHandler(
        console=console,
        show_time=False,
        show_path=False,
        show_level=False,
        markup=False,
        highlighter=NullHighlighter(),
    )


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        return prefix + record.getMessage()


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Copy the log lines into a run's log.txt with date and time."""
    if log.disabled:
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """A plain text table; the first `left` columns are left-aligned, numbers to the right."""
    view = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for number, column in enumerate(columns):
        view.add_column(Text(column), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        view.add_row(*(Text(_cell(value)) for value in row))
    console = Console(width=200, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().split("\n"))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Bar(Protocol):
    """A running progress display."""

    def update(self, completed: int, text: str = "", total: int | None = None) -> None: ...


class _RichBar:
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: int, text: str = "", total: int | None = None) -> None:
        self._progress.update(self._task, completed=completed, text=text, total=total)


class _NoBar:
    def update(self, completed: int, text: str = "", total: int | None = None) -> None:
        """Without a terminal the log lines tell the progress."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Bar]:
    """A bar with count, remaining time and a line of text on a terminal; nothing elsewhere."""
    console = next((h.console for h in log.handlers if isinstance(h, RichHandler)), None)
    if console is None:
        yield _NoBar()
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as view:
        yield _RichBar(view, view.add_task(label, total=total, text=""))
