"""warmstart takes a trained vision model and makes a better one from it, and proves what changed."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# The public verbs live in api.py and are loaded on first use, so that `import warmstart`
# (and with it `warmstart --help`) costs no torch import.
_VERBS = (
    "advise",
    "blend",
    "check",
    "compress",
    "compare",
    "continue_run",
    "diagnose",
    "distill",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "init",
    "inspect",
    "merge",
    "meta",
    "multitask",
    "predict",
    "prepare",
    "report",
    "reproduce",
    "resume",
    "runs",
    "show",
    "sweep",
    "track",
    "verify_resume",
)
__all__ = ["UserError", "__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from warmstart import api

        return getattr(api, name)
    if name == "UserError":
        from warmstart.errors import UserError

        return UserError
    raise AttributeError(f"module 'warmstart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
