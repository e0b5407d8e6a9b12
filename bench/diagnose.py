"""Twelve faults and four healthy runs (bench/faults.py): is the cause named first, and does the next config help?

The rules of `warmstart diagnose` were tuned on fashion900 with seeds 0 and 1 (--part tune), and reported on mnist10k
with seeds 2, 3 and 4 (--part report). What was missed there led to changes, on those and on seeds 5 to 7, which had
been looked at; the rules as they are now are reported on seeds 8, 9 and 10 (--part fresh). Each run is diagnosed; what
`--write` proposes for a faulty one is run as it is, by `finetune` or `continue`. Both are measured on the same clean
test images, because val is part of some faults: mean recall of the classes, at each run's own best step.

Interrupted, it goes on where it was when it is started again with the same --out; --table only writes the table.
Writes TABLE-PART.md and LOG-PART-SEED.jsonl to --out. --speed copies a finished run a hundred times, with a thousand
rows each, and times `runs`, `diagnose` and `compare` of all of them.

    python bench/diagnose.py --fashion FASHION900 --mnist MNIST10K --out FOLDER [--part report] [--seeds 2,3,4]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from faults import CASES, FAULTS, slug, train
from runs import finish

import warmstart as ws
from warmstart import console
from warmstart.run.reader import Run

PARTS = {"tune": ("fashion", (0, 1)), "report": ("digits", (2, 3, 4)), "fresh": ("digits", (8, 9, 10))}
METRIC = "balanced_accuracy"


def main() -> None:
    args = arguments()
    out = Path(args.out)
    kind, seeds = PARTS[args.part]
    seeds = seeds if args.seeds is None else tuple(args.seeds)
    if args.speed:
        print(json.dumps(speed(out, kind, seeds[0])))
        return
    if not args.table:
        place = Path(args.fashion if kind == "fashion" else args.mnist)
        for seed in seeds:
            log = out / f"LOG-{args.part}-{seed}.jsonl"
            for name in CASES:
                with console.quiet():
                    row = measured(out, (kind, place), name, seed)
                keep(log, row)
                print(f"{seed} {name}: {', '.join(row['found']) or '-'}", flush=True)
    logs = sorted(out.glob(f"LOG-{args.part}-*.jsonl"))
    text = table([json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()])
    (out / f"TABLE-{args.part}.md").write_text(text, encoding="utf-8")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--fashion", "--mnist", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--part", choices=PARTS, default="report")
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--speed", action="store_true")
    return parser.parse_args()


def measured(out: Path, data: tuple[str, Path], name: str, seed: int) -> dict[str, Any]:
    """The diagnosis of a case, and of a fault what the next config makes of it."""
    run = train(out, data, name, seed)
    found = ws.diagnose(str(run))
    row: dict[str, Any] = {
        **{"data": data[0], "seed": seed, "case": name, "cause": CASES[name].cause},
        **{"found": [f.id for f in found.findings], "scores": [f.score for f in found.findings]},
        **{"evidence": [list(f.evidence) for f in found.findings[:1]], "test": test_of(run)},
    }
    if name not in FAULTS:
        return row
    target = out / data[0] / str(seed) / "next" / f"{slug(name)}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in (target, target.with_suffix(".csv")):
        old.unlink(missing_ok=True)
    try:
        written = ws.diagnose(str(run), write=str(target))
    except ws.UserError as error:
        return row | {"next": None, "why": error.happened}
    digest = hashlib.sha256(target.read_bytes()).hexdigest()[:8]
    folder = target.parent / f"{slug(name)}-{digest}"
    config, verb = str(target), written.command[1]

    def begin(**places: str) -> object:
        if verb == "continue":
            return ws.continue_run(str(run), config=config, **places)
        return ws.finetune(config=config, **places)

    finish(folder, begin)
    return row | {"next": test_of(folder), "by": verb, "changes": changes(written)}


def changes(written: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, finding in enumerate(written.findings):
        if number == 0 or finding.is_certain:
            found = {**finding.changes, **found}
    return found


def test_of(run: Path) -> float:
    gain = next(gain for gain in Run(run).gains if gain["split"] == "test")
    return float(gain["best"][METRIC])


def keep(log: Path, row: dict[str, Any]) -> None:
    """One row per case and seed: the newest."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    rows = [old for old in rows if (old["case"], old["seed"]) != (row["case"], row["seed"])] + [row]
    log.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| run | cause | named first | other first findings | test | after the next config | by seed |"]
    lines += ["|---|---|---|---|---|---|---|"]
    named = helped = 0
    for name, case in CASES.items():
        own = sorted((row for row in rows if row["case"] == name), key=lambda row: row["seed"])
        if not own:
            continue
        firsts = [row["found"][0] if row["found"] else None for row in own]
        right = sum(first == case.cause for first in firsts)
        others = ", ".join(sorted({str(f or "nothing") for f in firsts if f != case.cause})) or "-"
        mended = [row for row in own if row.get("next") is not None]
        gains = [row["next"] - row["test"] for row in mended]
        after, each = "-", "-"
        if gains:
            after = f"{mean(row['next'] for row in mended):.3f}"
            each = " ".join(f"{gain:+.3f}" for gain in gains)
        named += name in FAULTS and right * 2 > len(own)
        helped += 2 * len(gains) > len(own) and mean(gains) > 0
        cause = f"`{case.cause}`" if case.cause else "-"
        before = f"{mean(row['test'] for row in mended or own):.3f}"
        lines.append(f"| {name} | {cause} | {right} of {len(own)} | {others} | {before} | {after} | {each} |")
    accused = sum(bool(row["found"]) for row in rows if row["case"] not in FAULTS)
    healthy = sum(row["case"] not in FAULTS for row in rows)
    lines += [
        "",
        f"Named first in most seeds: {named} of {len(FAULTS)} faults. Healthy runs accused: {accused} of",
    ]
    lines[-1] += f" {healthy}. Next config better on average: {helped} of {len(FAULTS)}."
    return "\n".join(lines) + "\n"


def speed(out: Path, kind: str, seed: int) -> dict[str, dict[str, float]]:
    """Seconds of `runs`, `diagnose` and `compare` on a hundred runs of a thousand rows, start of the process included:
    the least of three, by the clock and of the processor."""
    run, folder = out / kind / str(seed) / "runs" / slug("healthy: adapt"), out / "many"
    shutil.rmtree(folder, ignore_errors=True)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (lines * (1000 // len(lines) + 1))[:1000]
    for number in range(100):
        copy = folder / f"{number:03}"
        ignored = shutil.ignore_patterns("model.safetensors", "state.safetensors", "*.png")
        shutil.copytree(run, copy, ignore=ignored)
        (copy / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    calls = {
        "runs": "len(warmstart.runs(f))",
        "diagnose": "len(warmstart.diagnose(f))",
        "compare": "len(warmstart.compare(sorted(glob.glob(f + '/[0-9]*'))).rows)",
    }
    found = {}
    for verb, call in calls.items():
        code = (
            f"import glob, sys, time; f = sys.argv[1]; s = time.perf_counter(); import warmstart; n = {call};"
            " t = time.perf_counter() - s; assert n == 100 and 'torch' not in sys.modules;"
            " print(t, time.process_time())"
        )
        command = [sys.executable, "-c", code, str(folder)]
        done = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)
        ]
        wall, cpu = (min(map(float, column)) for column in zip(*done, strict=True))
        found[verb] = {"seconds": wall, "cpu_seconds": cpu}
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    main()
