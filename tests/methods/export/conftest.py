"""Exports are asked in forked processes, which have imported torch already; the pages' exports in new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import fresh
from warmstart.methods.export import answer, parity


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    code = Path(answer.__file__).read_text(encoding="utf-8")
    monkeypatch.setattr(parity, "ask", lambda *words: fresh.run(*words, code=code))
