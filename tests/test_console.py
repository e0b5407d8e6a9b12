"""What people read: plain lines and tables off a terminal, and nothing on stdout."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from warmstart import console


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def leave_no_handler():
    yield
    for handler in list(console.log.handlers):
        console.log.removeHandler(handler)


def test_plain_lines_on_stderr(capsys):
    console.setup()
    console.log.info("step [bold]%d[/bold] of %s", 3, "{x}")
    console.log.warning("odd")
    captured = capsys.readouterr()
    assert captured.err == "step [bold]3[/bold] of {x}\nwarning: odd\n"
    assert captured.out == ""


def test_setting_up_twice_says_things_once(capsys):
    console.setup()
    console.setup()
    console.log.info("once")
    assert capsys.readouterr().err == "once\n"


def test_a_host_program_keeps_its_log(caplog):
    console.setup()
    with caplog.at_level(logging.INFO):
        console.log.info("for the host too")
    assert caplog.messages == ["for the host too"]


def test_quiet_keeps_warnings(capsys):
    console.setup()
    with console.quiet():
        console.setup()  # as the verbs do that are called inside
        console.log.info("not now")
        console.log.warning("but this")
    console.log.info("again")
    assert capsys.readouterr().err == "warning: but this\nagain\n"


def test_the_log_file_has_dates(tmp_path, capsys):
    console.setup()
    for text in ("first ü", "second"):
        with console.log_file(tmp_path / "log.txt"):
            console.log.info(text)
    console.log.info("third")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "DATE ", line) for line in lines] == [
        "DATE INFO first ü",
        "DATE INFO second",
    ]
    assert capsys.readouterr().err == "first ü\nsecond\nthird\n"


def test_tables_are_plain_text():
    text = console.table("a [title]", ("name", "[x]"), [("cat", 0.123456), ("[red]dog", None), ("a", 12345)])
    assert text.split("\n") == [
        "a [title]",
        "name         [x]",
        "cat       0.1235",
        "[red]dog       -",
        "a          12345",
    ]


def test_a_long_cell_loses_nothing():
    name = "x" * 450
    assert console.table("", ("name",), [(name,)]).replace("\n", "") == "name" + name


def test_no_bar_without_a_terminal(capsys):
    console.setup()
    with console.progress("training", 3) as bar:
        bar.update(1, "loss 0.1")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    console.setup()
    with console.progress("training", 3) as bar:
        bar.update(2, "loss 0.5 [a/b]", total=4)
        console.log.info("a line above the bar")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "training" in text
    assert "2/4" in text
    assert "loss 0.5 [a/b]" in text
    assert "a line above the bar" in text
