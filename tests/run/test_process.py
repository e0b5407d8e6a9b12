"""A process is told from a later one of the same number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from warmstart.run.process import birth_of, is_gone

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def test_a_living_process_is_not_gone():
    own = os.getpid()
    assert birth_of(own) == birth_of(own) is not None
    assert not is_gone(own, birth_of(own)) and not is_gone(own, None)
    assert is_gone(own, "another boot:1")


def test_an_ended_process_is_gone_before_and_after_it_was_waited_for():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        born = birth_of(process.pid)
        assert born != birth_of(os.getpid()) and not is_gone(process.pid, born)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(process.pid, born)
    assert is_gone(process.pid, born) and birth_of(process.pid) is None
