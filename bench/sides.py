"""One process per measurement: run it, time it from outside, and read what it left.

A record holds, where known: `wall_s` (process start to its end, score or evaluation of val + test included),
`import_s` (time of all imports), `rss_mb` (peak of the largest process), `epoch_ends` (seconds since the fit began;
the ends of steps where a row asks for `--log-every 1steps`), `images_per_epoch`, `right` ('1' or '0' per image), or
`failure` (why there is nothing).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from setting import Setting

PEERS = {
    "plain loop": ("plain_loop", "torchvision"),
    "HF Trainer": ("hf_trainer", "transformers accelerate"),
    "Lightning": ("lightning_trainer", "lightning"),
    "fastai": ("fastai_learner", "fastai"),
    "timm": ("timm_loop", "timm"),
}
LIMIT, OURS = "limit", "warmstart"
HEAVY = ("torchmetrics", "sklearn", "matplotlib", "peft")
FOLDER = Path(__file__).parent / "peers"
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
Flags = Mapping[str, object]


def run_peer(setting: Setting, side: str, **settings: object) -> dict:
    """`settings` are flags of peers/common.py."""
    name, libraries = PEERS[side]
    missing = [library for library in libraries.split() if importlib.util.find_spec(library) is None]
    if missing:
        return {"failure": f"{' and '.join(missing)} not installed"}
    settings = {"data": setting.data, "workers": setting.workers, **settings}
    return run_script(setting, name, settings)


def run_limit(setting: Setting, counts: tuple[int, int, int], **settings: object) -> dict:
    """`counts` are training images, validation images and classes."""
    return run_script(setting, "in_memory", {"counts": counts, **settings})


def run_script(setting: Setting, name: str, settings: Flags) -> dict:
    flags = as_flags({"weights": setting.weights, "device": setting.device, **settings})
    with alone(setting.lock):
        record, out, _ = run_process([sys.executable, str(FOLDER / f"{name}.py"), *flags])
    return record | json.loads(out.splitlines()[-1]) if "failure" not in record else record


def run_warmstart(setting: Setting, images_per_epoch: int, **settings: object) -> dict:
    """As a user runs it: `python -m warmstart finetune`. Its times are those of its own run directory.

    An epoch ends there with its last step, before the validation: the difference of two ends holds
    one epoch and one validation, as on the other sides.
    """
    run, command = finetune_command(setting, settings)
    return measured(setting, run, command, images_per_epoch)


def finetune_command(setting: Setting, settings: Flags) -> tuple[Path, list[str]]:
    """A run directory that is not there yet, and the command that makes it."""
    run = Path(tempfile.mkdtemp(dir=setting.work)) / "run"
    fixed = {"weights": setting.weights, "device": setting.device, "batch_size": 32, "lr": 1e-3}
    fixed |= {"data": setting.data, "augment": "standard", "log_every": "1epochs", "output_dir": run}
    fixed |= {"cache_dir": run.parent / "cache"}
    return run, [sys.executable, "-m", "warmstart", "finetune", *as_flags({**fixed, **settings}), "--json"]


def stopped_run(setting: Setting, num_rows: int, **settings: object) -> Path:
    """A run that was asked to stop (SIGTERM) when it had written so many rows of training."""
    run, command = finetune_command(setting, settings)
    with alone(setting.lock):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(train_rows(run)) < num_rows:
            time.sleep(0.005)
        process.terminate()
        process.wait()
    assert process.returncode, "the run ended before it could be stopped"
    return run


def resume_copy(setting: Setting, stopped: Path, images_per_epoch: int) -> dict:
    """`warmstart resume` of a copy; `epoch_ends` are those of the resumed part."""
    run = Path(tempfile.mkdtemp(dir=setting.work)) / "run"
    shutil.copytree(stopped, run)
    command = [sys.executable, "-m", "warmstart", "resume", str(run), "--json"]
    return measured(setting, run, command, images_per_epoch)


def train_rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["kind"] == "train"]


def has_train_row(path: Path, offset: int) -> bool:
    """Whether there is one behind so many bytes; a resumed run first notes that it was resumed."""
    if not path.exists() or path.stat().st_size <= offset:
        return False
    return b'"train"' in path.read_bytes()[offset:]


def measured(setting: Setting, run: Path, command: list[str], images_per_epoch: int) -> dict:
    """Run a command that trains, and read what it added to its run directory."""
    before = len(train_rows(run))
    with alone(setting.lock):
        record, _, err = run_process(command, watch=run / "metrics.jsonl")
    if "failure" in record:
        return record
    rows = train_rows(run)[before:]
    status = json.loads((run / "status.json").read_text())
    last = run / "checkpoints" / (run / "checkpoints" / "LAST").read_text().strip() / "model.safetensors"
    imported = IMPORT.findall(err.split("step 0/")[0])
    return record | {
        "fit_s": status["seconds"],
        "epoch_ends": [row["seconds"] for row in rows],
        "images_per_epoch": images_per_epoch,
        "hash": hashlib.sha256(last.read_bytes()).hexdigest()[:16],
        "heavy": [name for name in HEAVY if any(module.split(".")[0] == name for _, module in imported)],
        "checkpoint": str(last),
    }


def score_of(setting: Setting, checkpoint: str, px: int) -> str:
    """The answers of a checkpoint under the transform of every other side."""
    flags = {"data": setting.data, "px": px, "checkpoint": checkpoint}
    record = run_script(setting, "score", flags)
    return record["right"] if "failure" not in record else sys.exit(record["failure"])


@contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Wait for the file lock and hold it; `flock FILE COMMAND` makes other work wait for it."""
    if lock is None:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_flags(settings: Flags) -> list[str]:
    """{"image_size": 64} -> ["--image-size", "64"]; a tuple gives several values."""
    flags: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    return flags


def run_process(command: list[str], watch: Path | None = None) -> tuple[dict, str, str]:
    """(record, stdout, stderr) of a command; `first_row_s` is when `watch` got a new row of training."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        size = watch.stat().st_size if watch is not None and watch.exists() else 0
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        first_row = None
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.perf_counter() - start
            if pid:
                break
            if watch is not None and first_row is None and has_train_row(watch, size):
                first_row = round(now, 3)
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        texts = out.read(), err.read()
    if process.returncode != 0:
        said = [line for line in texts[1].splitlines() if line.strip() and not IMPORT.match(line)]
        return {"failure": " ".join(said[-3:])[-300:] or f"exit code {process.returncode}"}, *texts
    record = {
        "wall_s": round(now, 3),
        "import_s": round(sum(int(microseconds) for microseconds, _ in IMPORT.findall(texts[1])) / 1e6, 3),
        "rss_mb": usage.ru_maxrss // 1024,
    }
    return record | ({"first_row_s": first_row} if watch is not None else {}), *texts
