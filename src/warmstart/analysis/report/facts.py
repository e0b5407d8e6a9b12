"""The facts of a run as blocks: its plan per block, its data, the machine it ran on, the commands that repeat it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from warmstart.analysis.report.blocks import Bar, Cell, Chip, Commands, Facts, Table
from warmstart.analysis.report.numbers import NOTHING, counted, duration, plain, rate, share
from warmstart.analysis.report.words import Words
from warmstart.errors import listing
from warmstart.run import layout
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run

_MOST_CLASSES = 30  # in the table of counts; of more, the largest and the smallest
_TONES = {"full": "good", "lora": "unsure", "frozen": "plain"}
_NEUTRAL = {"crop_scale": 1.0}  # augmentations that do nothing at another value than 0


def plan_table(run: Run, words: Words) -> Table:
    """A row per block."""
    rows = run.plan["rows"]
    largest = max((row["num_parameters"] for row in rows), default=1) or 1
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        mode, trained = row["mode"], row.get("num_trainable")
        word = words("blend_mode") if mode == "blend" else words.known(mode)
        is_trained = bool(row.get("trainable"))
        begins = row.get("from_step")
        cells.append(
            (
                row["name"],
                Chip(word, _TONES.get(mode, "plain")),
                rate(row["lr"]) if is_trained else NOTHING,
                f"{row['weight_decay']:g}" if is_trained else NOTHING,
                words(f"norms_{row['norms']}") if row["norms"] in ("train", "held") else NOTHING,
                (words("later") if begins is None else plain(begins)) if is_trained else NOTHING,
                Bar(counted(row["num_parameters"]), row["num_parameters"] / largest),
                NOTHING if trained is None else counted(trained),
            )
        )
    total = sum(row["num_parameters"] for row in rows), sum(row.get("num_trainable", 0) for row in rows)
    totals = (("", "", "", "", "", "", counted(total[0]), counted(total[1])),)
    names = ("block", "mode", "rate", "weight_decay", "norms", "from_step", "parameters", "trained_share")
    return Table(tuple(map(words, names)), tuple(cells), 2, totals)


def data_facts(run: Run, words: Words) -> Facts:
    """Where the images come from, and what was made of them. `run` may be seen as that of one task."""
    data, resolved = run.resolved["data"], run.resolved
    division = data["split"]
    sides = [
        " x ".join(str(side) for side in pair)
        for pair in zip(data.get("heights") or (), data.get("widths") or (), strict=True)
    ]
    rows: list[tuple[str, str]] = [
        (words("path"), data["path"]),
        (words("sizes"), ", ".join(f"{words.known(name)} {num:,}" for name, num in data["sizes"].items())),
        (words("classes"), plain(len(data["classes"]))),
        (words("image_sizes"), ", ".join(sides)),
        (words("input"), " x ".join(map(str, resolved["model"]["preprocessing"]["image_size"]))),
        (words("augmentation"), _augmentation(resolved["augment"], words)),
        (words("division"), _division(run, division, words)),
        (words("unreadable"), plain(len(data["quarantined"]))),
        (words("mixed"), ", ".join(run.source_places) if run.task is None else ""),
        (words("fingerprint"), str(data["fingerprint"])[:16]),
        (words("notes"), "; ".join(data.get("notes") or ())),
    ]
    return Facts(tuple(row for row in rows if row[1]))


def _division(run: Run, division: dict[str, Any], words: Words) -> str:
    if not run.splits:
        return words("as_given")
    ratios = {"train": division["train_ratio"], "val": division["val_ratio"]}
    return words("by_seed", seed=division["seed"], **ratios)


def _augmentation(augment: dict[str, Any], words: Words) -> str:
    on = {
        name: value
        for name, value in augment["settings"].items()
        if name != "seed" and value != _NEUTRAL.get(name, 0.0)
    }
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in on.items())
    return told or words("none")


def class_counts(run: Run, words: Words) -> Table | None:
    """Images of each class in each split, and of masks the pixels of training; None where nobody counted."""
    data = run.resolved["data"]
    counts, pixels = data.get("counts"), data.get("pixels") or {}
    if not counts:
        return None
    splits = list(counts)
    size = pixels or counts[splits[0]]
    classes = sorted(counts[splits[0]], key=lambda name: -size.get(name, 0))
    note = ""
    if len(classes) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        note = words("classes_between", num=len(classes) - 2 * half)
        classes = [*classes[:half], *classes[-half:]]
    largest = max((size.get(name, 0) for name in classes), default=0) or 1
    rows = []
    for name in classes:
        numbers = [size.get(name, 0), *(counts[split].get(name, 0) for split in splits[0 if pixels else 1 :])]
        rows.append((name, Bar(counted(numbers[0]), numbers[0] / largest), *map(counted, numbers[1:])))
    head = [words("class"), *([words("pixels")] if pixels else []), *(words.known(split) for split in splits)]
    return Table(tuple(head), tuple(rows), note=note)


def environment(run: Run, words: Words) -> Facts:
    """The machine, the versions, the seed, and where the weights came from."""
    resolved, status = run.resolved, run.status
    source, head = resolved["model"]["source"], resolved["model"]["head"]
    parent = resolved["parent"]
    given = [name for name, origin in resolved["origins"].items() if origin != "default"]
    rows = [
        (words("state"), words.known(status["state"])),
        (words("stop_reason"), status.get("stop_reason") or ""),
        (words("created"), resolved["created"].replace("T", " ")),
        (words("model"), resolved["model"]["name"]),
        (words("weights"), str(source["path"] or source["kind"])),
        (words("sha256"), str(source.get("sha256") or "")[:16]),
        (words("licence"), str(resolved["model"].get("licence") or "")),
        (words("head"), f"{head['kind']}: {head['reason']}"),
        (words("parent"), "" if parent is None else reference_of(parent)),
        (words("teacher"), ", ".join(run.teachers)),
        (words("device"), resolved["device"]),
        (words("precision_of"), resolved["precision"]),
        (words("threads"), str(resolved["num_threads"])),
        (words("processes"), str(resolved["num_processes"])),
        (words("seed"), str(resolved["seed"])),
        (words("rescues"), str(status.get("rescues") or "")),
        (words("damaged_rows"), str(run.evals.num_damaged + run.metrics.num_damaged or "")),
        (words("time_went"), _time(status.get("time"), words)),
        (words("settings_given"), listing((name.partition(".")[2] for name in given), 24)),
        (words("versions"), _versions(resolved)),
    ]
    return Facts(tuple(row for row in rows if row[1]))


def _versions(resolved: dict[str, Any]) -> str:
    own = {"warmstart": resolved["warmstart"], **resolved["versions"]}
    return ", ".join(f"{name} {version}" for name, version in own.items() if version is not None)


def _time(seconds: dict[str, float] | None, words: Words) -> str:
    total = sum(seconds.values()) if seconds else 0.0
    if not seconds or not total:
        return ""
    parts = [(name, value) for name, value in seconds.items() if value >= 0.005 * total]
    told = ", ".join(f"{words.known(name)} {share(value / total)}" for name, value in parts)
    return f"{duration(total)}: {told}"


def commands(run: Run, words: Words) -> Commands:
    """What repeats the run, measures it again, and goes on from it."""
    path = shlex.quote(str(run.path))
    rows = []
    verb = _verb(run)
    if verb is not None:
        config = shlex.quote(str(run.path / layout.CONFIG))
        rows.append(
            (
                words("again", file=layout.CONFIG),
                f"warmstart {verb} --config {config} --output-dir {path}-again",
            )
        )
    if run.resolved.get("episodes") is None:
        which = [f" --task {shlex.quote(task['name'])}" for task in run.tasks] or [""]
        rows += [(words("evaluate_again"), f"warmstart evaluate {path}{task}") for task in which]
    if run.status["state"] in ("interrupted", "killed", "failed"):
        rows.append((words("go_on"), f"warmstart resume {path}"))
    elif verb is not None:
        rows.append((words("more"), f"warmstart continue {path} --epochs N"))
    rows.append((words("why"), f"warmstart diagnose {path} --write next.yaml"))
    rows.append((words("report_again"), f"warmstart report {path} --lang {words.language}"))
    return Commands(tuple(rows))


def _verb(run: Run) -> str | None:
    """The command that makes such a run of its config.yaml alone; None where there is none."""
    resolved = run.resolved
    if resolved["model"]["source"]["kind"] in ("compress", "blend"):
        return None
    if resolved.get("episodes") is not None:
        return "meta"
    if run.tasks:
        return "multitask"
    if resolved.get("teachers"):
        return "distill"
    parent = resolved["parent"]
    if parent is not None and parent.get("keep") is not None and Path(parent["run"]).exists():
        return f"continue {shlex.quote(reference_of(parent))} --keep {parent['keep']}"
    return "finetune"
