"""The public verbs, one function each; the command line calls these and nothing else.

Each returns a record with `to_json()` (what `--json` prints) and `text()` (what people read, and a notebook shows).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from warmstart.verbs.advising import advise as advise
from warmstart.verbs.compressing import compress as compress
from warmstart.verbs.diagnosing import diagnose as diagnose
from warmstart.verbs.explaining import explain as explain
from warmstart.verbs.exporting import export as export
from warmstart.verbs.folders import init as init
from warmstart.verbs.folders import prepare as prepare
from warmstart.verbs.folders import runs as runs
from warmstart.verbs.folders import show as show
from warmstart.verbs.looking import compare as compare
from warmstart.verbs.looking import inspect as inspect
from warmstart.verbs.methods import blend as blend
from warmstart.verbs.methods import merge as merge
from warmstart.verbs.models import check as check
from warmstart.verbs.models import evaluate as evaluate
from warmstart.verbs.models import predict as predict
from warmstart.verbs.reporting import report as report
from warmstart.verbs.reporting import track as track
from warmstart.verbs.reproducing import reproduce as reproduce
from warmstart.verbs.sweeping import sweep as sweep
from warmstart.verbs.training import continue_run as continue_run
from warmstart.verbs.training import distill as distill
from warmstart.verbs.training import finetune as finetune
from warmstart.verbs.training import meta as meta
from warmstart.verbs.training import multitask as multitask
from warmstart.verbs.training import resume as resume
from warmstart.verbs.training import verify_resume as verify_resume


def as_json(result: Any) -> Any:
    """What `--json` prints for any verb's result."""
    if hasattr(result, "to_json"):
        return result.to_json()
    return asdict(result) if hasattr(result, "__dataclass_fields__") else result
