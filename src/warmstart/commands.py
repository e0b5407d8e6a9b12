"""The table of commands: for each its flags, the verb it calls, and how its result is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from warmstart.flags import (
    DEVICE,
    EXECUTION,
    JSON,
    LABELS,
    MASKS,
    MODEL,
    TASK,
    WORKERS,
    Flag,
    advise_flags,
    blend_flags,
    compare_flags,
    compress_flags,
    continue_flags,
    explain_flags,
    export_flags,
    finetune_flags,
    merge_flags,
    meta_flags,
    multitask_flags,
    prepare_flags,
    sweep_flags,
)
from warmstart.flags_proofs import reproduce_flags, verify_flags
from warmstart.flags_use import diagnose_flags, evaluate_flags, predict_flags, report_flags, track_flags


def _json(result: Any) -> Any:
    from warmstart.api import as_json

    return as_json(result)


def _text(result: Any) -> str:
    return result.text()


@dataclass(frozen=True)
class Command:
    """`call` gets the values by name; `to_json` and `to_text` render its result."""

    help: str
    flags: Callable[[], tuple[Flag, ...]]
    call: Callable[..., Any]
    to_json: Callable[[Any], Any] = _json
    to_text: Callable[[Any], str] = _text
    exit_code: Callable[[Any], int] = lambda result: 0
    in_processes: bool = False  # processes that were launched together share the work; else the first does it

    def flag_names(self) -> set[str]:
        flags = self.flags()
        names = {flag.name.replace("_", "-") for flag in flags}
        return names | {f"no-{flag.name.replace('_', '-')}" for flag in flags if flag.kind is bool}


def _verb(name: str) -> Callable[..., Any]:
    """A verb of api.py, imported when it is called: help and parsing need no torch."""

    def call(**values: Any) -> Any:
        from warmstart import api

        return getattr(api, name)(**values)

    return call


def _completion(shell: str = "bash") -> str:
    from warmstart.app import build_app
    from warmstart.errors import UserError

    if shell not in ("bash", "zsh", "fish"):
        raise UserError(f"completion for {shell!r} is not known", "bash, zsh or fish")
    return build_app("*").generate_completion(prog_name="warmstart", shell=shell)


def _demo(**values: Any) -> Any:
    from warmstart.demo import demo

    return demo(**values)


COMMANDS: dict[str, Command] = {
    "finetune": Command(
        "Train a better model from a trained one on your images.",
        finetune_flags,
        _verb("finetune"),
        in_processes=True,
    ),
    "distill": Command(
        "Train a model on the labels and on the answers of a better one, the teacher.",
        finetune_flags,
        _verb("distill"),
        in_processes=True,
    ),
    "multitask": Command(
        "Train one backbone with a head for each of several data sets; or add a task to a finished run.",
        multitask_flags,
        _verb("multitask"),
        in_processes=True,
    ),
    "meta": Command(
        "Learn a start for unseen classes from episodes: ProtoNet, MAML, ANIL, Reptile.",
        meta_flags,
        _verb("meta"),
        in_processes=True,
    ),
    "resume": Command(
        "Finish exactly the run that was interrupted.",
        lambda: (Flag("run", "run directory", positional=True, required=True), DEVICE, WORKERS, JSON),
        _verb("resume"),
        in_processes=True,
    ),
    "continue": Command(
        "Go on from a run in a child run with what is changed; the parent's best is the bar.",
        continue_flags,
        _verb("continue_run"),
        in_processes=True,
    ),
    "verify-resume": Command(
        "Prove for your own settings that an interrupted run ends as one that was not, to the bit.",
        verify_flags,
        _verb("verify_resume"),
        exit_code=lambda proof: 0 if proof.is_equal else 1,
    ),
    "evaluate": Command(
        "Measure a model on labelled images: metrics with intervals, per class, pictures.",
        evaluate_flags,
        _verb("evaluate"),
    ),
    "predict": Command(
        "Classes of image files and folders, or masks.",
        predict_flags,
        _verb("predict"),
    ),
    "explain": Command(
        "Look inside: what the model looked at, its filters and embeddings, what fine-tuning changed; a page.",
        explain_flags,
        _verb("explain"),
    ),
    "blend": Command(
        "Blend a tuned model with its start, or average a run's last checkpoints, into a new run.",
        blend_flags,
        _verb("blend"),
    ),
    "compress": Command(
        "Make a model smaller: prune, factorise, quantise; recover what is lost, and measure both.",
        compress_flags,
        _verb("compress"),
    ),
    "merge": Command(
        "Merge low-rank adapters into the weights: a plain checkpoint, compared with the unmerged model.",
        merge_flags,
        _verb("merge"),
    ),
    "export": Command(
        "Write a model for other programs (ONNX, torch, timm, transformers, its own source), its answers compared.",
        export_flags,
        _verb("export"),
    ),
    "check": Command(
        "Load a checkpoint and run three batches through it, before spending anything.",
        lambda: (
            MODEL,
            Flag("data", "data set", required=True),
            TASK,
            LABELS,
            *MASKS,
            Flag("batch_size", "images per batch [default: 32]", int, least=1),
            *EXECUTION,
        ),
        _verb("check"),
    ),
    "inspect": Command(
        "What is in a checkpoint of any program: epoch, metrics, blocks, settings, faults; or how two differ.",
        lambda: (
            Flag("checkpoint", "run directory, RUN@step, or file of weights", positional=True, required=True),
            Flag("other", "another one: what differs from the first to it", positional=True),
            JSON,
        ),
        _verb("inspect"),
    ),
    "compare": Command(
        "Is B better than A? Two models on the same samples, two recipes of several seeds, or a table of runs.",
        compare_flags,
        _verb("compare"),
        exit_code=lambda found: 0 if found.passed else 1,
    ),
    "advise": Command(
        "Propose settings for data and a model, with reasons and measured costs; --run tries them and keeps the best.",
        advise_flags,
        _verb("advise"),
    ),
    "sweep": Command(
        "Try settings: a grid, random values or TPE; losers are stopped early, the best by val is kept.",
        sweep_flags,
        _verb("sweep"),
    ),
    "runs": Command(
        "List the runs in a folder.",
        lambda: (Flag("folder", "folder of runs [default: runs]", positional=True), JSON),
        _verb("runs"),
        lambda rows: {"runs": _json(rows)},
    ),
    "show": Command(
        "What a run did: state, start and best, plan, files.",
        lambda: (Flag("run", "run directory", positional=True, required=True), JSON),
        _verb("show"),
    ),
    "diagnose": Command(
        "What went wrong in a run, or in another program's history: causes with numbers, and the next settings.",
        diagnose_flags,
        _verb("diagnose"),
    ),
    "report": Command(
        "One HTML page about a run, a comparison or a sweep: the verdict, curves, classes, errors, what repeats it.",
        report_flags,
        _verb("report"),
    ),
    "track": Command(
        "Send a run's rows, settings and pictures to a tracker: MLflow or Weights & Biases.",
        track_flags,
        _verb("track"),
    ),
    "init": Command(
        "Write a commented YAML to start from.",
        lambda: (
            Flag("data", "data set", positional=True, required=True),
            Flag("weights", "checkpoint to start from", positional=True),
            LABELS,
            Flag("output", "file to write [default: warmstart.yaml]"),
            JSON,
        ),
        _verb("init"),
        lambda path: {"config": path},
        lambda path: f"{path} written; next: warmstart finetune --config {path} --dry-run",
    ),
    "reproduce": Command(
        "Do a recorded run again, and say whether it gives the same numbers, or what differs first.",
        reproduce_flags,
        _verb("reproduce"),
        exit_code=lambda found: 0 if found.is_equal else 1,
    ),
    "prepare": Command(
        "Images -> a parquet file, or split folders, where no group and no picture crosses a split; leaks are counted.",
        prepare_flags,
        _verb("prepare"),
    ),
    "demo": Command(
        "The whole story in a minute on small data that come with it.",
        lambda: (
            Flag("output_dir", "folder to write [default: warmstart-demo, or the next free number]"),
            Flag("seeds", "how many [default: 3]", int, least=1),
            JSON,
        ),
        _demo,
    ),
    "completion": Command(
        "Print the completion script of a shell.",
        lambda: (Flag("shell", "bash, zsh or fish", positional=True), JSON),
        _completion,
        lambda script: {"script": script},
        lambda script: script,
    ),
}
