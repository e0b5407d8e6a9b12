"""Does a run take the memory and the time that `--dry-run` says? Each in a process of its own, in rounds.

Five runs of different kinds: all of a small CNN, its head alone (the backbone computed once), LoRA on a small ViT,
masks, and 28 px from nothing. Of each, what the dry run expects, and what the run then took: seconds of the training by
epoch (status.json: steps, validations, checkpoints; not the import of torch), and the peak of the process's memory.
The goal is within 25 %, at the median of the rounds.

    python bench/probe.py --images FOLDER --weights MOBILENETV3 --camvid CAMVID --fashion FASHION900 --out FOLDER

Writes LOG.jsonl (a row for each case and round; what is there is not measured again) and TABLE.md to --out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

COMMON: dict[str, Any] = {"device": "cpu", "tensorboard": False, "pictures": False}
# What a process of its own does: with the settings as JSON, the cost that is expected, or that was paid.
CHILD = """
import json, sys
import warmstart as ws
from warmstart import console
from warmstart.inference.device import peak_bytes
import torch
settings, is_dry = json.loads(sys.argv[1]), sys.argv[2] == "dry"
with console.quiet():
    found = ws.finetune(**settings, dry_run=is_dry)
if is_dry:
    cost = found.to_json()["cost"]
    print(json.dumps({"seconds": cost["seconds"], "bytes": cost["peak_bytes"]}))
else:
    from warmstart.run.reader import open_run
    print(json.dumps({"seconds": open_run(found.run).status["seconds"], "bytes": peak_bytes(torch.device("cpu"))}))
"""


def cases(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """name -> settings on top of COMMON."""
    images = {"data": args.images, "image_size": "64", "batch_size": 32, "lr": 1e-3}
    tuned = {**images, "model": "timm:mobilenetv3_small_100", "weights": args.weights}
    vit = {"model": "timm:vit_tiny_patch16_224", "weights": "none", "lora.rank": 8}
    masks = {"model": "builtin:microsegformer", "weights": "none", "ignore": "11", "image_size": "96x128"}
    return {
        "all of MobileNetV3, 64 px": {**tuned, "epochs": 2},
        "its head, 2 views": {**tuned, "freeze": "backbone", "views": 2, "epochs": 6},
        "LoRA on ViT-Ti, 64 px": {**images, **vit, "epochs": 1},
        "masks, 96x128": {**masks, "data": args.camvid, "batch_size": 8, "epochs": 2},
        "28 px from nothing": {
            **{"data": args.fashion, "model": "builtin:fashion_cnn", "weights": "none", "image_size": "28"},
            **{"batch_size": 32, "epochs": 6},
        },
    }


def main() -> None:
    args = arguments()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "LOG.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["case"], row["round"]) for row in known}
    for number in range(args.rounds):
        for name, own in cases(args).items():
            if (name, number) not in done:
                row = {"case": name, "round": number, **measured(out, {**COMMON, **own})}
                with log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
                known.append(row)
    text = table(known)
    (out / "TABLE.md").write_text(text, encoding="utf-8")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--images", "--weights", "--camvid", "--fashion", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def measured(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Expected and paid, each from decoded images on, in the run's own empty cache."""
    found = {}
    for word in ("dry", "run"):
        for name in ("run", "cache"):
            shutil.rmtree(out / name, ignore_errors=True)
        places = {"cache_dir": str(out / "cache"), "output_dir": str(out / "run")}
        command = [sys.executable, "-c", CHILD, json.dumps(settings | places), word]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[word] = json.loads(done.stdout.splitlines()[-1])
    return {"expected": found["dry"], "paid": found["run"], "epochs": settings["epochs"]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| run | seconds per epoch | expected | off by | peak memory, MiB | expected | off by | rounds |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    worst = 0.0
    for name in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == name]
        cells = []
        for key, unit, digits in (("seconds", own[0]["epochs"], 2), ("bytes", 2**20, 0)):
            paid, expected = (median(row[side][key] for row in own) for side in ("paid", "expected"))
            off = median(row["expected"][key] / row["paid"][key] - 1 for row in own)
            worst = max(worst, abs(off))
            cells += [f"{paid / unit:.{digits}f}", f"{expected / unit:.{digits}f}", f"{off:+.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join([*lines, "", f"Furthest off, at the median: {worst:.0%}."]) + "\n"


if __name__ == "__main__":
    main()
