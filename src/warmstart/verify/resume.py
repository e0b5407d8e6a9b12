"""Proof on a user's own settings: a run that is killed and resumed ends as the run that was never interrupted.

A few dozen steps, once straight and once killed in the middle (SIGKILL, no warning) and resumed, every part in a
process of its own, as it is in life. Then everything that both left behind is compared.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from warmstart.config.io import Loaded, to_yaml
from warmstart.config.places import check_on_disk
from warmstart.config.schema import Config
from warmstart.config.values import Cadence, Duration
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.run import layout
from warmstart.run.reader import Run, read_rows
from warmstart.shown import Shown
from warmstart.verify.differences import Difference, first_difference
from warmstart.verify.processes import run_command, running

_NUM_TRIES = 5
_FEWEST_STEPS = 4
_PART = "a run of the proof"


@dataclass(frozen=True)
class Proof(Shown):
    """`difference` is the first thing that was not the same, None where all was; `hashes` are of the straight run.

    `is_reproducible` says whether two straight runs agree; it is asked only where the resumed one differs.
    """

    steps: int
    killed_after: int
    resumed_from: int
    hashes: dict[str, str]
    coverage: str
    difference: Difference | None
    is_reproducible: bool | None
    folder: str | None  # where the runs were kept

    @property
    def is_equal(self) -> bool:
        return self.difference is None

    def to_json(self) -> dict[str, Any]:
        found = {**self.__dict__, "is_equal": self.is_equal}
        return found | {"difference": None if self.difference is None else self.difference.__dict__}

    def text(self) -> str:
        lines = [
            f"{self.steps} steps straight, and killed after step {self.killed_after}, resumed from step "
            f"{self.resumed_from} ({self.coverage})"
        ]
        if self.difference is None:
            lines.append(
                "the same to the bit: rows, weights, optimizer and random state, counters, best checkpoint"
            )
            lines += [f"  {digest[:16]}  {name}" for name, digest in self.hashes.items()]
        else:
            lines += ["NOT the same. The first thing that differs:", f"  {self.difference.text()}"]
        if self.is_reproducible is False:
            lines.append(
                "two straight runs differ as well: it is not the resume, these settings do not give the same numbers "
                "twice on this device (on a GPU, kernels that add in any order)"
            )
        if self.folder is not None:
            lines.append(f"both runs are in {self.folder}")
        return "\n".join(lines)


def verify_resume(loaded: Loaded, steps: int = 24, keep_in: str | None = None) -> Proof:
    """Run the proof in a temporary folder, or in the new folder `keep_in`, which then stays.

    Raises:
        UserError: the settings do not train at all; or the run was too short to be killed in time.
    """
    if steps < _FEWEST_STEPS:
        raise UserError(
            f"--steps {steps}", f"{_FEWEST_STEPS} or more: something must lie before and after the kill"
        )
    check_on_disk(loaded.config, "the proof kills and resumes processes")
    if keep_in is not None:
        folder = Path(keep_in)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--keep-in {folder} is not empty", "a new or empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        return _prove(loaded, steps, folder, str(folder))
    with tempfile.TemporaryDirectory(prefix="warmstart-verify-") as name:
        return _prove(loaded, steps, Path(name), None)


def _prove(loaded: Loaded, steps: int, folder: Path, kept: str | None) -> Proof:
    config = folder / "config.yaml"
    config.write_text(to_yaml(_shortened(loaded.config, steps, folder), loaded.origins), encoding="utf-8")
    straight, resumed = folder / "straight", folder / "resumed"
    log.info("verify-resume: %d steps straight", steps)
    _finetune(config, straight)
    total = Run(straight).resolved["pace"]["total_steps"]
    killed_after = _killed(config, resumed, total)
    newest = Run(resumed).checkpoint_steps()
    log.info("verify-resume: killed after step %d; resuming", killed_after)
    run_command(_PART, "resume", str(resumed))
    difference = first_difference(Run(straight), Run(resumed))
    is_reproducible = None
    if difference is not None:
        log.info("verify-resume: they differ; the straight run once more, to see whether it repeats itself")
        _finetune(config, folder / "again")
        is_reproducible = first_difference(Run(straight), Run(folder / "again")) is None
    return Proof(
        steps=total,
        killed_after=killed_after,
        resumed_from=max(newest, default=0),
        hashes=_hashes(Run(straight)),
        coverage=_coverage(Run(straight)),
        difference=difference,
        is_reproducible=is_reproducible,
        folder=kept,
    )


def _shortened(config: Config, steps: int, folder: Path) -> Config:
    """The same settings for a few steps: a row after each, checkpoints and validations between them.

    Nothing is read from or left in the caches of other runs.
    """
    total = min(steps, config.train.max_steps or steps)
    every = {"log_every": 1, "save_every": max(1, total // 5)}
    train = config.train.model_copy(
        update={
            "max_steps": total,
            "time_budget": None,
            "eval_every": Cadence(((Duration(max(1, total // 3), "steps"), None),)),
            **{name: Duration(number, "steps") for name, number in every.items()},
        }
    )
    output = config.output.model_copy(
        update={
            "output_dir": None,
            "name": None,
            "save_as": None,
            "tensorboard": False,
            "runs_dir": str(folder),
        }
    )
    data = config.data.model_copy(update={"cache_dir": str(folder / "cache")})
    return config.model_copy(update={"train": train, "output": output, "data": data})


def _finetune(config: Path, run: Path) -> None:
    run_command(_PART, "finetune", "--config", str(config), "--output-dir", str(run))


def _killed(config: Path, folder: Path, total: int) -> int:
    """Start a run and kill it in the middle; the last step it has told."""
    for number in range(_NUM_TRIES):
        run = folder.with_name(f"killed-{number}")
        target = max(1, total * (_NUM_TRIES - number) // (2 * _NUM_TRIES))  # in the middle, then earlier
        with running("finetune", "--config", str(config), "--output-dir", str(run)) as process:
            was_alive = process.wait_until(lambda: _last_step(run) >= target)  # noqa: B023 (called within the loop)
            code = process.kill()
            if was_alive and code != 0 and Run(run).checkpoint_steps():
                run.rename(folder)
                return _last_step(folder)
            if code != 0 and _last_step(run) == 0:
                raise UserError(f"{_PART} failed: {process.reason()}", "settings that train")
    raise UserError(
        f"the run of {total} steps was over before it could be killed, {_NUM_TRIES} times",
        "a run that lasts",
        "--steps 500",
    )


def _last_step(run: Path) -> int:
    return max((row["step"] for row in read_rows(run / layout.METRICS).rows), default=0)


def _hashes(run: Run) -> dict[str, str]:
    """Of what the last checkpoint and the best one hold."""
    found = {}
    for pointer in (layout.LAST, layout.BEST):
        step = run.pointer(pointer)
        if step is not None:
            for name in (layout.MODEL, layout.STATE_TENSORS):
                content = (run.checkpoint(step) / name).read_bytes()
                found[f"{layout.checkpoint_name(step)}/{name}"] = sha256(content).hexdigest()
    return found


def _coverage(run: Run) -> str:
    """What of the settings so few steps have reached."""
    pace = run.resolved["pace"]
    stages = run.plan["stages"]
    begun = [row for row in run.metrics.rows if row.get("kind") == "stage"]
    reached = 1 + sum(row["step"] < pace["total_steps"] for row in begun)
    validations = len({row["step"] for row in run.evals.rows})
    return (
        f"{pace['total_steps'] / pace['steps_per_epoch']:.2g} epochs, {reached} of {len(stages)} stages, "
        f"{validations} validations, {run.resolved['workers']['value']} workers"
    )
