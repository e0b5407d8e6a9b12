"""int8 on real images: what it costs in accuracy, and what it gives in size and time under ONNX Runtime.

`mobilenetv3`: the given weights, trained on CIFAR-10's training images, on its 10,000 test images at 64 px, which are
divided (80 % to train, 10 % val, 10 % test). `resnet18`: timm's, from random weights, three epochs on 1,500 of these.
Each is made int8 after training, and trained for int8 for one epoch; the given model with the same epoch in floats is
the control. Its graph, which no image trained, is also measured on all 10,000 images.

Interrupted, it goes on where it was when it is started again with the same --out; `--only` does a part. Writes TABLE.md
and int8.jsonl to it.

    python bench/int8.py --data cifar10-test.parquet --weights W.safetensors --out FOLDER [--only mobilenetv3]
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from runs import finish

import warmstart as ws

COMMON: dict[str, Any] = {"device": "cpu", "workers": 0}
TUNED: dict[str, Any] = {"image_size": "64", "batch_size": 32, "tensorboard": False, "epochs": 1, "lr": 1e-4}
ROWS = ("val", "change on val", "change on test", "MB", "ms at batch 1", "ms at batch 32")


def main() -> None:
    args = arguments()
    out, records = Path(args.out), []
    for name in args.only or ("mobilenetv3", "resnet18"):
        start = given(args, out) if name == "mobilenetv3" else trained(args, out)
        for method, settings in (("int8", {}), ("qat", {"epochs": 1, "lr": TUNED["lr"], "batch_size": 32})):
            records += [
                {"model": name, **row}
                for row in compressed(start, method, settings, out / f"{name}-{method}")
            ]
        if name == "mobilenetv3":
            records.append({"model": name, **control(args, start, out / f"{name}-control")})
    if not args.only or "mobilenetv3" in args.only:
        records += whole(args, out)
    with (out / "int8.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    (out / "TABLE.md").write_text(table(records), encoding="utf-8")
    print(table(records))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="cifar10-test.parquet")
    parser.add_argument("--weights", required=True, help="of mobilenetv3_small_100")
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", action="append", choices=("mobilenetv3", "resnet18"))
    return parser.parse_args()


def given(args: argparse.Namespace, out: Path) -> str:
    """The weights as a run on the data, which `compress` makes of a file."""
    folder = out / "mobilenetv3-int8"
    if not (folder / "compression.json").exists():
        ws.compress(args.weights, data=args.data, method="int8", output_dir=str(folder), **COMMON)
    return str(folder / "rounds" / "00")


def trained(args: argparse.Namespace, out: Path) -> str:
    settings = (
        TUNED | COMMON | {"weights": "none", "epochs": 3, "lr": 1e-3, "limit": "1500", "augment": "light"}
    )
    begin = partial(ws.finetune, "timm:resnet18", args.data, **settings)
    return str(finish(out / "resnet18", begin).path)


def compressed(start: str, method: str, settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    if not (folder / "compression.json").exists():
        ws.compress(start, method=method, output_dir=str(folder), **settings, **COMMON)
    found = json.loads((folder / "compression.json").read_text(encoding="utf-8"))
    rows = []
    for point in found["points"]:
        change, cost = point["change"], point["cost"]
        row = {
            "method": method,
            "row": point["name"],
            "chosen": point["name"] == found["chosen"],
            "val": point["metrics"]["accuracy"],
            "change on val": None
            if change is None
            else [change[key] for key in ("difference", "low", "high")],
            "MB": cost["num_bytes"] / 1e6,
            "parity": [note.partition("process: ")[2] for note in point["notes"] if "process: " in note],
        }
        for batch in ("1", "32"):
            times = (cost["latency"][batch], cost["original"][batch])
            row[f"ms at batch {batch}"] = [1e3 * each["median"] for each in times]
        if row["chosen"]:
            row["change on test"] = [found["test"][key] for key in ("difference", "low", "high")]
        rows.append(row)
    return rows


def control(args: argparse.Namespace, start: str, folder: Path) -> dict[str, Any]:
    """The same epoch in floats."""
    begin = partial(ws.finetune, weights=start, data=args.data, **TUNED, **COMMON)
    run = finish(folder, begin)
    rows = [row for row in run.evals.rows if row.get("split") == "val"]
    return {
        "method": "control",
        "row": "one epoch in floats",
        "val": rows[-1]["accuracy"],
        "start": rows[0]["accuracy"],
    }


def whole(args: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """The given weights, and the graph that val chose, on all images: 256 of them calibrated, none trained."""
    rows = []
    for name, model in (
        ("weights", args.weights),
        ("int8", str(out / "mobilenetv3-int8" / "model-int8.onnx")),
    ):
        found = ws.evaluate(model, data=args.data, split="all", device="cpu")
        rows.append(
            {"model": "mobilenetv3", "method": "all 10,000", "row": name, "val": found.metrics["accuracy"]}
        )
    return rows


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| model | method | " + " | ".join(ROWS) + " |", "|---" * (len(ROWS) + 2) + "|"]
    for record in records:
        cells = [
            f"{record['model']}",
            f"{record['method']}: {record['row']}{' (chosen)' * record.get('chosen', False)}",
        ]
        lines.append("| " + " | ".join([*cells, *(cell(record.get(name)) for name in ROWS)]) + " |")
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1 else f"{value:.2f}"
    if len(value) == 2:
        return f"{value[0]:.2f} ({value[1]:.2f})"
    return f"{value[0]:+.4f} ({value[1]:+.4f} to {value[2]:+.4f})"


if __name__ == "__main__":
    main()
