"""The only place that knows the file names of a run directory."""

from __future__ import annotations

import re
from pathlib import Path

FORMAT_VERSION = 2

CONFIG = "config.yaml"
RESOLVED = "resolved.json"
PLAN = "plan.json"
METRICS = "metrics.jsonl"
EVALS = "evals.jsonl"
STATUS = "status.json"
LOG = "log.txt"
QUARANTINE = "quarantine.csv"
SPLITS = "splits.csv"
START = "start.safetensors"  # what the run must not move away from, or forget
TENSORBOARD = "tb"
CHECKPOINTS = "checkpoints"
PREDICTIONS = "predictions"
EVALUATIONS = "evaluations"
# In the folder of an evaluation.
RESULTS, PREDICTIONS_TABLE = "evaluation_results.json", "predictions.parquet"
CONFUSION_TABLE, MISTAKES_TABLE, MISLABELLED_TABLE = "confusion.csv", "mistakes.csv", "mislabelled.csv"
EXPLANATIONS = "explanations"
REPORT = "report.html"
TRACKED = "tracked.json"  # to which trackers the run was sent
CURVES = "analysis.png"
BLEND = "blend.png"
COMPRESSION, COMPRESSION_PLOT = "compression.json", "compression.png"
SENSITIVITY, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.png"
COMPRESS = "compress.json"  # what was asked for: with it, a compression goes on
OWNER = "owner.pid"  # which process is working in a folder of trials
TRYOUT, TRIALS, BEST_CONFIG = "tryout.json", "trials", "best.yaml"  # of strategies, or a sweep
GAINS = "gains.json"
THRESHOLDS = "thresholds.json"
OCEC = "ocec"  # files in the way of document 001's program, where asked for
ADAPTER = "adapter"  # what low-rank adapters learned, without the model, in peft's file format
PROCESSOR = (
    "processor"  # of an image-text model: tokenizer and image processor, as save_pretrained writes them
)
CONTINUE_INFO = "continue_info.yaml"
LOOKS = "warmstart-looks.json"  # beside runs: how often each split of their data was used to compare models
SWEEP = "sweep.json"  # in the folder of a sweep: all its trials, as far as they have come
SWEEP_REQUEST, SWEEP_BASE = "request.json", "base.yaml"  # what was asked for: with both, a sweep goes on
SWEEP_STORAGE = "sweep.db"
SWEEP_PARALLEL, SWEEP_IMPORTANCE = "parallel.png", "importance.png"
COMPARISON = "comparison.json"  # in the folder of a comparison

LAST = "LAST"
BEST = "BEST"
MODEL = "model.safetensors"
STATE_TENSORS = "state.safetensors"
STATE = "state.json"
MANIFEST = "MANIFEST.json"

_STEP = re.compile(r"^step_(\d{8,})$")


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint folder's name, or None for any other name."""
    match = _STEP.match(name)
    return int(match[1]) if match else None


def source_splits_name(number: int) -> str:
    """Of the other data sets, in the order of `sources` in resolved.json."""
    return f"splits-{number}.csv"


def predictions_name(split: str, step: int, task: str | None = None) -> str:
    """`task` is the one among several that they are of."""
    return f"{of_task(split, task)}@{step}.parquet"


def of_task(name: str, task: str | None) -> str:
    """The name of something that each of several tasks has."""
    return name if task is None else f"{task}.{name}"


def is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / RESOLVED).is_file()
