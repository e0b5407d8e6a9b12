"""`runs` and `show`: what run directories say, without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.console import table
from warmstart.errors import UserError, listing
from warmstart.records import RETAIN
from warmstart.run import layout, reader
from warmstart.run.lineage import compare_with_parent
from warmstart.run.reader import Run
from warmstart.run.rows import last_row
from warmstart.shown import METRICS, Shown

_COLUMNS = (
    "run",
    "state",
    "model",
    "data",
    "steps",
    "lr",
    "best_step",
    "combined",
    "miou",
    "accuracy",
    "map",
    "f1",
    "loss",
)
_OF_SOME_TASKS = ("combined", "miou", "map", "f1")  # shown where a run has them


class RunList(Shown, list[dict[str, Any]]):
    """One row per run."""

    def text(self) -> str:
        return runs_text(self)


class Description(Shown, dict[str, Any]):
    """What `--json` prints of a run; shown, it adds the files that a person would open."""

    def text(self) -> str:
        return "\n".join([show_text(self), "", "files", *run_files(self["run"])])

    @property
    def pictures(self) -> list[Path]:
        return [Path(self["run"]) / layout.CURVES]


def list_runs(folder: str) -> RunList:
    """One row per run below `folder`, oldest first; one that cannot be read says so in its state."""
    rows = [_row_or_reason(run) for run in reader.find_runs(folder)]
    return RunList(sorted(rows, key=lambda row: str(row["created"])))


def _row_or_reason(run: Run) -> dict[str, Any]:
    try:
        return _row(run)
    except UserError as error:
        empty: dict[str, Any] = dict.fromkeys((*_COLUMNS, "created", "parent"))
        return empty | {"run": str(run.path), "state": f"unreadable: {error.happened}"}


def _row(run: Run) -> dict[str, Any]:
    status, resolved = run.status, run.resolved
    best = best_validation(run)
    return {
        "run": str(run.path),
        "created": resolved["created"],
        "state": status["state"],
        "model": resolved["model"]["name"],
        "data": resolved["data"]["path"],
        "steps": f"{_last_step(run)}/{resolved['pace']['total_steps']}",
        "lr": resolved["lr"],
        "best_step": best.get("step"),
        "combined": best.get("combined"),
        "accuracy": best.get("accuracy"),
        "map": best.get("map"),
        "miou": best.get("miou"),
        "f1": best.get("f1"),
        "loss": best.get("loss"),
        "parent": (resolved["parent"] or {}).get("run"),
    }


def best_validation(run: Run) -> dict[str, Any]:
    """The val row of the step that BEST names, or an empty dict."""
    step = run.pointer(layout.BEST)
    rows = [
        row for row in run.evals.rows if row["split"] == "val" and row["step"] == step and "task" not in row
    ]
    return rows[-1] if rows else {}


def _last_step(run: Run) -> int:
    row = last_row(run.path / layout.METRICS)
    return 0 if row is None else int(row["step"])


def runs_text(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no runs here yet"
    unused = {name for name in _OF_SOME_TASKS if all(row[name] is None for row in rows)}
    columns = [name for name in _COLUMNS if name not in unused]
    return table("", columns, [[row[name] for name in columns] for row in rows], left=4)


def describe_run(path: str) -> Description:
    """Everything `show` tells, as one JSON object."""
    run = reader.open_run(path)
    evals = run.evals
    steps = sorted({row["step"] for row in evals.rows})
    compared = compare_with_parent(run)
    described = {
        "run": str(run.path),
        "status": run.status,
        "model": run.resolved["model"],
        "task": run.resolved["task"],
        "tasks": list(run.tasks),
        "selected": run.resolved.get("selected"),
        "data": {k: run.resolved["data"][k] for k in ("path", "classes", "counts", "sizes", "notes")},
        "retained": run.resolved.get("retained"),
        "teachers": list(run.teachers),
        "num_quarantined": len(run.resolved["data"]["quarantined"]),
        "augment": run.resolved["augment"],
        "parent": run.resolved["parent"],
        "compared": None if compared is None else compared.to_json(),
        "pace": run.resolved["pace"],
        "origins": run.resolved["origins"],
        "plan": run.plan["rows"],
        "start": _splits_at(run, run.resolved["pace"].get("first_step", 0)) if steps else {},
        "best": {"step": run.pointer(layout.BEST), **_splits_at(run, run.pointer(layout.BEST))},
        "num_evaluations": len(steps),
        "checkpoints": run.checkpoint_steps(),
        "num_damaged_rows": evals.num_damaged + run.metrics.num_damaged,
        "lr_rule": lr_rule(run),
        "gains": run.gains,
        "thresholds": run.thresholds,
        "compress": run.resolved.get("compress"),
    }
    return Description(described)


def _splits_at(run: Run, step: int | None) -> dict[str, dict[str, Any]]:
    """split, or TASK.split -> its row; the run's own measurements win over later evaluations of maybe other images."""
    rows = [row for row in run.evals.rows if row["step"] == step]
    named = [(layout.of_task(row["split"], row.get("task")), row) for row in rows]
    later = {name: row for name, row in named if row.get("kind") == "evaluate"}
    return later | {name: row for name, row in named if row.get("kind") != "evaluate"}


def lr_rule(run: Run) -> dict[str, float] | None:
    """Document 000's rule: tune with 1/100 to 1/50 of the rate that the original training had.

    None for a training from nothing, where no run of the line has recorded that rate, and where nothing was trained.
    """
    original = run.resolved["original_lr"]
    if original is None or "compress" in run.resolved or run.resolved["model"]["source"]["kind"] == "random":
        return None
    return {"original_lr": original, "low": original / 100, "high": original / 50, "lr": run.resolved["lr"]}


def show_text(info: dict[str, Any]) -> str:
    """The same for people: state, start and best side by side, the plan, where things lie, what to do next."""
    status, pace = info["status"], info["pace"]
    reason = f" ({status['stop_reason']})" if status.get("stop_reason") else ""
    head = info["model"]["head"]
    lines = [
        f"{info['run']}: {status['state']}{reason}",
        f"model  {info['model']['name']} from {info['model']['source']['path'] or info['model']['source']['kind']}; "
        f"head {head['kind']} ({head['reason']})",
        f"data   {info['data']['path']}: "
        + ", ".join(f"{split} {size}" for split, size in info["data"]["sizes"].items())
        + (f"; {info['num_quarantined']} unreadable" if info["num_quarantined"] else ""),
        *(
            f"task   {task['name']}: {task['kind']}, {len(task['classes'])} classes, {task['settings']['path']}"
            + ("" if task["trained"] else "; measured, not trained")
            for task in info["tasks"]
        ),
        *([] if info["selected"] is None else [f"chosen by {info['selected']}"]),
        *(
            []
            if info["retained"] is None
            else [
                f"retain {info['retained']['path']}: {info['retained']['split']} {info['retained']['num_samples']}"
            ]
        ),
        *(f"teacher {name}" for name in info["teachers"]),
        *_compressed(info),
        f"steps  {pace['total_steps']} ({pace['steps_per_epoch']} per epoch); checkpoints {info['checkpoints']}",
        *([] if info["compared"] is None else [f"parent {info['compared']['text']}"]),
        "",
        _metrics_table(info),
        "",
        _plan_text(info["plan"]),
    ]
    lines += [f"stage  {told}" for told in status.get("stages_never_begun") or ()]
    if status.get("recovery_events") is not None:
        lines += ["", f"recovery events {status['recovery_events']}, rescues {status['rescues']}"]
    if told := time_text(info["status"].get("time")):
        lines += ["", told]
    for gain in info["gains"]:
        where = gain["split"] if gain.get("task") is None else f"{gain['split']} of {gain['task']}"
        lines += ["", f"{where}: {gain['verdict']}: {gain['change']}"]
    if info["thresholds"] is not None:
        told = listing((f"{name} {value:.2f}" for name, value in info["thresholds"]["thresholds"].items()), 8)
        lines += [
            "",
            f"f1, f1_micro and exact_match of val and train are at threshold 0.5; those of later evaluations at "
            f"the thresholds chosen on val: {told}",
        ]
    rule = info["lr_rule"]
    if rule is not None:
        lines += [
            "",
            f"rate: {rule['lr']:g}; the original training had {rule['original_lr']:g}, "
            f"of which document 000 advises 1/100 to 1/50: {rule['low']:g} to {rule['high']:g}",
        ]
    if info["num_damaged_rows"]:
        lines += ["", f"{info['num_damaged_rows']} damaged rows were skipped"]
    return "\n".join(lines)


def _compressed(info: dict[str, Any]) -> list[str]:
    """What was made of the model's layers."""
    found = info["compress"]
    return [] if found is None else [f"smaller by {found['method']}: {found['told']}"]


_REMEDIES = {
    "data": (0.2, "waiting for images: keep them decoded (--cache disk), or decode ahead (--workers 4)"),
    "evaluation": (0.4, "evaluation: measure less often (--eval-every 2epochs)"),
    "saving": (0.2, "saving: save less often (--save-every 2epochs)"),
    "features": (0.6, "computing features, which are kept: the next such run has them"),
}


def time_text(seconds: dict[str, float] | None) -> str:
    """Where the time went, in shares, and what to do where something else than steps took much of it."""
    total = sum(seconds.values()) if seconds else 0.0
    if not seconds or total < 1:
        return ""
    shares = {activity: value / total for activity, value in seconds.items()}
    told = ", ".join(f"{activity} {share:.0%}" for activity, share in shares.items() if share >= 0.005)
    text = f"time   {total:.0f} s: {told}"
    for activity, (much, remedy) in _REMEDIES.items():
        if shares.get(activity, 0.0) > much:
            text += f"\n       {shares[activity]:.0%} was {remedy}"
    return text


def _metrics_table(info: dict[str, Any]) -> str:
    best_step, first = info["best"]["step"], info["pace"].get("first_step", 0)
    rows = []
    of_tasks = [name for name in info["start"] | info["best"] if "." in name]
    for split in ("train", "val", "test", RETAIN, *of_tasks):
        start, best = info["start"].get(split, {}), info["best"].get(split, {})
        for name in METRICS:
            if name in start or name in best:
                rows.append((split, name, start.get(name), best.get(name)))
    return table("", ("split", "metric", f"start (step {first})", f"best (step {best_step})"), rows, left=2)


def _plan_text(rows: list[dict[str, Any]]) -> str:
    cells = [
        (
            r["name"],
            r["mode"],
            f"{r['lr']:.2e}" if r["trainable"] else "-",
            r["norms"],
            "later" if r["from_step"] is None else r["from_step"],
            r["num_parameters"],
            r.get("num_trainable", "?"),  # runs of earlier versions have not counted
        )
        for r in rows
    ]
    return table("plan", ("block", "mode", "lr", "norms", "from step", "parameters", "trained"), cells)


def run_files(path: str) -> list[str]:
    """The files of a run that a person would open."""
    run = Path(path)
    names = (
        *(layout.CURVES, layout.COMPRESSION, layout.COMPRESSION_PLOT, layout.EVALUATIONS, layout.PLAN),
        *(layout.RESOLVED, layout.LOG, layout.QUARANTINE, layout.ADAPTER),
    )
    return [str(run / name) for name in names if (run / name).exists()]
