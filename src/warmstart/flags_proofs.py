"""The flags of commands that prove something of runs."""

from __future__ import annotations

from warmstart.flags import DEVICE, JSON, Flag, finetune_flags


def verify_flags() -> tuple[Flag, ...]:
    """Those of finetune; the runs are short, and lie in a temporary folder."""
    return (
        Flag("config", "YAML file of settings; flags win over it", positional=True),
        Flag("steps", "steps of each run [default: 24]", int, least=1),
        Flag("keep_in", "new folder for both runs [default: a temporary one]"),
        *(flag for flag in finetune_flags() if flag.name not in ("config", "dry_run")),
    )


def reproduce_flags() -> tuple[Flag, ...]:
    return (
        Flag("run", "run directory", positional=True, required=True),
        Flag(
            "steps",
            "compare up to this step of the same schedule, and stop there [default: all]",
            int,
            least=1,
        ),
        Flag("data", "where its data lie now [default: where they lay]"),
        Flag("weights", "where the weights lie that it began with [default: where they lay]"),
        DEVICE,
        Flag("output_dir", "new folder for the new run [default: a temporary one]"),
        JSON,
    )
