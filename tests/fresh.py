"""A fresh process without the seconds that importing torch takes.

On Linux a server that has imported third parties, and nothing of warmstart, forks a child for each script: like a
process that was started anew, the child knows of a run what its files say. Where the test is about what is imported,
and when (`--help` without torch, a hub's client that reads its settings), a process of its own is right.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

PARTIES = """
import json, os, runpy, signal, sys
import cv2, cyclopts, matplotlib.figure, pyarrow.parquet, pydantic, rich.console, safetensors.torch, timm, torch
import torch._dynamo, torchvision, torch.utils.tensorboard, yaml

assert not any(name.split(".")[0] == "warmstart" for name in sys.modules)
"""
# For processes that a test starts by the dozen, and whose imports are not what it is about.
OURS = """
import warmstart.engine.train
"""
SERVER = """
for line in sys.stdin:
    job = json.loads(line)
    if "poll" in job:
        pid, status = os.waitpid(job["poll"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else "", flush=True)
        continue
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if job["waits"] else child, flush=True)
else:
    os._exit(0)

signal.alarm(job["seconds"])
ADD = os.O_WRONLY | os.O_APPEND
places = ((0, os.devnull, os.O_RDONLY), (1, job["out"], ADD), (2, job["err"], ADD))
for number, path, mode in places:
    os.dup2(os.open(path, mode), number)
os.chdir(job["folder"])
sys.argv = job["arguments"]
if job["module"]:
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
else:
    exec(compile(job["code"], "<fresh>", "exec"), {"__name__": "__main__"})
"""


@cache
def _server(has_ours: bool = False) -> subprocess.Popen[str]:
    """One for all tests of this process, started when the first of them asks."""
    command = [sys.executable, "-c", PARTIES + (OURS if has_ours else "") + SERVER]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
    )
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen[str]) -> None:
    with server:
        server.kill()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(
    *arguments: str | Path, code: str = "", module: str = "", folder: Path | None = None, seconds: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run `code`, or `module` as `python -m` does, with these arguments in `folder`: its output and exit code.

    After `seconds` it is ended.
    """
    words, place = [str(word) for word in arguments], folder or Path.cwd()
    if sys.platform != "linux":
        what = ["-m", module] if module else ["-c", code]
        return subprocess.run(
            [sys.executable, *what, *words],
            cwd=place,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        job = {"code": code, "module": module, "arguments": ["-c", *words], "seconds": seconds, "waits": True}
        job |= {"folder": str(place), "out": out.name, "err": err.name}
        return subprocess.CompletedProcess(words, int(_ask(job)), out.read(), err.read())


_ONE_AT_A_TIME = threading.Lock()


def _ask(job: dict[str, object], has_ours: bool = False) -> str:
    """The server's answer to a job."""
    server = _server(has_ours)
    assert server.stdin is not None and server.stdout is not None
    with _ONE_AT_A_TIME:
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    assert answer, "the server of fresh processes is gone"
    return answer.strip()


class Started:
    """A module that runs by itself, in the way of subprocess.Popen; what it says is added to a file. Linux only.

    warmstart's modules are imported before the fork, too; nothing of it has run.
    """

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, told: Path) -> None:
        told.touch()
        job = {"code": "", "module": module, "arguments": ["-c", *arguments], "seconds": 200, "waits": False}
        self.pid = int(_ask(job | {"folder": str(folder), "out": str(told), "err": str(told)}, has_ours=True))
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            answer = _ask({"poll": self.pid}, has_ours=True)
            self._code = int(answer) if answer else None
        return self._code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
