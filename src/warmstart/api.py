"""The public verbs, one function each; the command line calls these and nothing else.

Each returns a record with `to_json()` (what `--json` prints) and `text()` (what people read, and a notebook shows).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from warmstart.verbs.folders import init, prepare, runs, show
from warmstart.verbs.methods import blend
from warmstart.verbs.models import check, evaluate, predict
from warmstart.verbs.training import continue_run, finetune, resume, verify_resume

__all__ = [
    "as_json",
    "blend",
    "check",
    "continue_run",
    "evaluate",
    "finetune",
    "init",
    "predict",
    "prepare",
    "resume",
    "runs",
    "show",
    "verify_resume",
]


def as_json(result: Any) -> Any:
    """What `--json` prints for any verb's result."""
    if hasattr(result, "to_json"):
        return result.to_json()
    return asdict(result) if hasattr(result, "__dataclass_fields__") else result
