"""How fast is it, beside what people use instead? One command measures every row of docs/performance.md.

    python bench/speed.py --data DOGCAT --weights WEIGHTS.safetensors --cifar CIFAR10 --camvid CAMVID \
        [--work full,head] [--rounds 5]

The peers (plain loop, HF Trainer, Lightning, fastai, timm's loop: `pip install 'warmstart[bench]'`), the limit (the
same steps on samples that lie in memory) and warmstart do the same work, each in a process of its own, one after
the other, in rounds that each begin with another side. Raw records go to bench/results/ROW-DEVICE.jsonl, and
docs/performance.md is written anew between its markers from all files there. `--quick` runs one round of a few
images to see whether everything runs, prints the tables and writes nothing; `--tables` only writes the tables anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rows
import tables
from setting import Setting, machine, part_of, read_lines, start_weights

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
LIBRARIES = ("warmstart", "torch", "torchvision", "timm", "transformers", "accelerate", "lightning", "fastai")
ROWS = {
    "full": "Full fine-tuning, 128 px, 3 epochs: from the second epoch on",
    "end-to-end": "Full fine-tuning, 128 px, 10 epochs, from process start",
    "head": "Head only, 128 px, 20 epochs, K = 2 views, from process start",
    "accuracy": "Accuracy of head-only training at 64 px, 20 epochs, val + test",
    "last2": "Last two blocks, 128 px, 10 epochs, K = 2 views, from process start",
    "warm": "The head-only run repeated with a warm store",
    "cifar": "CIFAR-10 at 64 px, one epoch, full",
    "memory": "Ten times more images, cache off, 64 px, one epoch",
    "overhead": "Before the first step",
    "workers": "Caches and workers: the weights that come out",
    "segmentation": "Segmentation, CamVid at 128 px, full: from the second epoch on",
    "masks-frozen": "Segmentation, frozen encoder, CamVid at 128 px, 4 epochs, K = 2 views",
    "resume-start": "A resumed run's first step",
}


def main() -> None:
    args = arguments()
    if not args.tables:
        with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as work:
            measure(args, Path(work))
    if not args.quick:
        write_document(DOCUMENT, RESULTS)
        print(f"written: {DOCUMENT}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with train, val and test of class folders")
    parser.add_argument("--weights", type=Path, help="safetensors of a timm model; metadata: arch, mean, std")
    parser.add_argument(
        "--cifar", type=Path, help="folder with cifar10-train.parquet and cifar10-test.parquet"
    )
    parser.add_argument("--camvid", type=Path, help="folder with train and val, each of images and masks")
    parser.add_argument("--work", default=",".join(ROWS), help=f"rows to measure [default: {','.join(ROWS)}]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="use so many images of CIFAR-10 and CamVid")
    parser.add_argument(
        "--leave-out",
        type=float,
        help="after round one, leave out peers slower than the fastest by this factor",
    )
    parser.add_argument("--lock", type=Path, help="a file that is locked while something is measured")
    parser.add_argument("--add", action="store_true", help="more rounds beside those in the raw file")
    parser.add_argument("--quick", action="store_true", help="see whether it runs; writes nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables anew, measure nothing")
    args = parser.parse_args()
    unknown = [name for name in args.work.split(",") if name not in ROWS]
    if unknown:
        parser.error(f"--work {','.join(unknown)}: choose from {', '.join(ROWS)}")
    if not args.tables and (args.data is None or args.weights is None):
        parser.error("--data and --weights are needed to measure")
    return args


def measure(args: argparse.Namespace, work: Path) -> None:
    """Every row that was asked for, its records written as they come."""
    data = part_of(args.data, work / "quick") if args.quick else args.data.resolve()
    facts = machine()
    setting = Setting(
        data=data,
        weights=start_weights(args.weights, work),
        cifar=args.cifar,
        camvid=camvid_of(args, work),
        work=work,
        device=args.device,
        rounds=args.rounds,
        quick=args.quick,
        limit=args.limit,
        workers=min(8, int(facts["cores"])),
        leave_out=args.leave_out,
        lock=args.lock,
    )
    header = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "command": command(), "device": args.device}
    header |= {**facts, **graphics_card(args.device), "versions": versions(), "peer_workers": setting.workers}
    folder = work / "results" if args.quick else RESULTS
    folder.mkdir(exist_ok=True)
    for name in args.work.split(","):
        path = folder / f"{name}-{args.device.split(':')[0]}.jsonl"
        earlier = read_lines(path)[1:] if args.add and path.exists() else []
        first_round = 1 + max((record["round"] for record in earlier), default=-1)
        partial = path.with_suffix(".partial")
        with partial.open("w") as file:
            print(json.dumps(header), file=file)
            for record in earlier:
                print(json.dumps(record), file=file)
            for record in getattr(rows, name.replace("-", "_"))(replace(setting, first_round=first_round)):
                print(json.dumps(kept(record, name)), file=file, flush=True)
                print(f"{name}: {summary_line(record)}", file=sys.stderr, flush=True)
        partial.replace(path)
        note = " (--quick: a few small images; the figures mean nothing)" if args.quick else ""
        print(f"\n## {ROWS[name]}{note}\n\n" + "\n".join(section(path)), flush=True)


def camvid_of(args: argparse.Namespace, work: Path) -> Path | None:
    number = args.limit or (16 if args.quick else None)
    if args.camvid is None or number is None:
        return args.camvid and args.camvid.resolve()
    return part_of(args.camvid, work / "camvid", number, ("train", "val"), 4)


def kept(record: dict, name: str) -> dict:
    """What goes into the raw file: no paths of the temporary folder, answers only where they are compared."""
    dropped = {"checkpoint"} if name == "accuracy" else {"checkpoint", "right"}
    return {key: value for key, value in record.items() if key not in dropped}


def summary_line(record: dict) -> str:
    done = record.get("failure") or f"{record['wall_s']:.1f} s, {record['rss_mb']} MB"
    return f"round {record['round']}, {record['side']}: {done}"


def section(path: Path) -> list[str]:
    """The Markdown of one raw file: machine and command, table, verdicts."""
    header, *records = read_lines(path)
    return report(header, *getattr(tables, row_of(path).replace("-", "_"))(records))


def report(header: dict, lines: list[str], verdicts: list[tables.Verdict]) -> list[str]:
    card = f", {header['gpu']}" if "gpu" in header else ""
    place = f"{header['cpu']}, {header['cores']} cores, {header['memory_gib']} GiB{card}"
    installed = ", ".join(f"{name} {number}" for name, number in header["versions"].items())
    goals = [f"| {v.goal} | {v.figure} | {v.text} |" for v in verdicts]
    lines = [*lines, "", "| goal | measured | |", "|---|---|---|", *goals]
    return [*lines, "", f"{header['date']}; {place}; {installed}.", "", f"    {header['command']}", ""]


def row_of(path: Path) -> str:
    return path.stem.rsplit("-", 1)[0]


def write_document(document: Path, results: Path) -> None:
    """Rewrite what lies between `<!-- bench:NAME -->` and `<!-- /bench -->` from the raw files."""
    text = document.read_text(encoding="utf-8")
    for name in ROWS:
        parts = []
        for path in sorted(results.glob(f"{name}-c*.jsonl")):
            device = path.stem.rsplit("-", 1)[1]
            parts += [f"On {device.upper()}:", "", *section(path)] if device != "cpu" else section(path)
        text = between(text, name, parts or ["Not measured yet.", ""])
    document.write_text(between(text, "summary", summary(results)), encoding="utf-8")


def summary(results: Path) -> list[str]:
    lines = ["| work | device | goal | measured | |", "|---|---|---|---|---|"]
    for name, title in ROWS.items():
        for path in sorted(results.glob(f"{name}-c*.jsonl")):
            _, verdicts = getattr(tables, name.replace("-", "_"))(read_lines(path)[1:])
            device = path.stem.rsplit("-", 1)[1]
            lines += [f"| {title} | {device} | {v.goal} | {v.figure} | {v.text} |" for v in verdicts]
    return [*lines, ""]


def between(text: str, name: str, lines: list[str]) -> str:
    opening, closing = f"<!-- bench:{name} -->\n", "<!-- /bench -->"
    before, found, rest = text.partition(opening)
    assert found and closing in rest, f"{DOCUMENT} has no place for {name}: {opening.strip()} ... {closing}"
    return before + opening + "\n" + "\n".join(lines) + rest[rest.index(closing) :]


def command(script: str = "bench/speed.py") -> str:
    """As it was typed, with folders by their last name: paths of a machine mean nothing elsewhere."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", script, *words])


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def graphics_card(device: str) -> dict[str, str]:
    if device == "cpu":
        return {}
    import torch  # only here: this process must stay small, its size counts in its children's peak

    return {"gpu": torch.cuda.get_device_name(device)}


if __name__ == "__main__":
    main()
