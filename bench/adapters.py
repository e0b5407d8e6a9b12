"""What LoRA costs: its peak memory beside full fine-tuning's, and its images per second beside peft's.

    python bench/adapters.py [--work memory,speed] [--rounds 5] [--device cpu]

ViT-B/16 at 224 px in batches of 8, random weights, synthetic images; every side in a process of its own, in rounds that
each begin with another side. Raw records go to bench/results/adapters-ROW-DEVICE.jsonl, and the tables of
docs/performance.md are written anew from them. `--quick` runs one round of a smaller model and writes nothing;
`--tables` only writes the tables anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rows import Records, alternate
from setting import Setting, machine, read_lines, synthetic_jpegs
from sides import FOLDER, OURS, alone, as_flags, run_process, run_warmstart
from speed import DOCUMENT, RESULTS, between, command, graphics_card, report, summary_line, versions
from tables import Section, Verdict, later_speed, median, round_ratios, side_table, spread_text

ROWS = {
    "memory": "Peak memory of a process: ViT-B/16, 224 px, batch 8",
    "speed": "LoRA beside peft in a bare loop: ViT-B/16, 224 px, batch 8",
}
LIBRARIES = ("warmstart", "torch", "timm", "peft", "bitsandbytes")
PEFT, FULL, CHECKPOINTED, LORA, QLORA = "peft", "full", "full, checkpointed", "LoRA", "QLoRA"
BATCH, RANK, TARGETS = 8, 8, "qkv"
SWITCH = ()  # a flag without a value
NOT_COUNTED = 2  # steps that pay for allocation
GOAL = 0.95


def memory(setting: Setting) -> Records:
    """A few steps, between two validations; a process with a 4-bit base needs bitsandbytes."""
    steps = 2 if setting.quick else 4
    lora = {"lora.rank": RANK}
    ways = {
        FULL: {},
        CHECKPOINTED: {"gradient_checkpointing": SWITCH},
        LORA: lora,
        f"{LORA}, checkpointed": {**lora, "gradient_checkpointing": SWITCH},
    }
    if importlib.util.find_spec("bitsandbytes") is not None:
        ways[QLORA] = {**lora, "lora.bits": 4}
    yield from alternate(setting, {name: partial(ours, setting, steps, way) for name, way in ways.items()})


def speed(setting: Setting) -> Records:
    """The same adapters on both sides; warmstart decodes, augments, clips and logs, the bare loop does not."""
    steps = NOT_COUNTED + (2 if setting.quick else 10)
    lora = {"lora.rank": RANK, "lora.targets": TARGETS}
    sides = {OURS: partial(ours, setting, steps, lora), PEFT: partial(bare_loop, setting, steps)}
    yield from alternate(setting, sides)


def model_of(setting: Setting) -> str:
    return "vit_tiny_patch16_224" if setting.quick else "vit_base_patch16_224"


def ours(setting: Setting, steps: int, settings: dict[str, object], seed: int) -> dict:
    """So many steps of warmstart as the command line runs it; the ends of steps, with their number of images."""
    fixed = {"model": f"timm:{model_of(setting)}", "image_size": 224, "batch_size": BATCH, "epochs": 1}
    fixed |= {"eval_batch_size": BATCH, "max_steps": steps, "log_every": "1steps", "save_every": "1epochs"}
    fixed |= {"workers": 1, "feature_cache": "off", "seed": seed}
    return run_warmstart(setting, BATCH, **fixed, **settings)


def bare_loop(setting: Setting, steps: int, _: int) -> dict:
    if importlib.util.find_spec("peft") is None:
        return {"failure": "peft not installed"}
    flags = {"model": model_of(setting), "targets": TARGETS, "rank": RANK, "steps": steps, "batch": BATCH}
    settings = as_flags({**flags, "device": setting.device})
    with alone(setting.lock):
        record, out, _ = run_process([sys.executable, str(FOLDER / "peft_loop.py"), *settings])
    return record | json.loads(out.splitlines()[-1]) if "failure" not in record else record


def memory_table(records: list[dict]) -> Section:
    lines = side_table(records, {"seconds per step": seconds_per_step}, digits=2)
    verdicts = []
    for less, more in ((CHECKPOINTED, FULL), (LORA, FULL), (QLORA, LORA)):
        ratios = round_ratios(records, lambda record: record["rss_mb"], less, more)
        if ratios:
            goal = f"{less}: less memory than {more}"
            verdicts.append(Verdict(goal, spread_text(ratios, " x"), median(ratios) < 1))
    return lines, verdicts


def speed_table(records: list[dict]) -> Section:
    lines = side_table(records, {"images/s": step_speed}, digits=2)
    ratios = round_ratios(records, step_speed, OURS, PEFT)
    reached = bool(ratios) and median(ratios) >= GOAL
    return lines, [Verdict(f">= {GOAL:g} x peft in a bare loop", spread_text(ratios, " x"), reached)]


MEASURES: dict[str, Callable[[Setting], Records]] = {"memory": memory, "speed": speed}
TABLES: dict[str, Callable[[list[dict]], Section]] = {"memory": memory_table, "speed": speed_table}


def step_speed(record: dict) -> float:
    """Images per second after the first steps."""
    return later_speed(record, NOT_COUNTED)


def seconds_per_step(record: dict) -> float:
    ends = record["epoch_ends"]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    args = arguments()
    if not args.tables:
        with tempfile.TemporaryDirectory(prefix="warmstart-bench-") as work:
            measure(args, Path(work))
    if not args.quick:
        write_document()
        print(f"written: {DOCUMENT}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default=",".join(ROWS), help=f"rows to measure [default: {','.join(ROWS)}]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lock", type=Path, help="a file that is locked while something is measured")
    parser.add_argument("--quick", action="store_true", help="see whether it runs; writes nothing")
    parser.add_argument("--tables", action="store_true", help="write the tables anew, measure nothing")
    args = parser.parse_args()
    unknown = [name for name in args.work.split(",") if name not in ROWS]
    if unknown:
        parser.error(f"--work {','.join(unknown)}: choose from {', '.join(ROWS)}")
    return args


def measure(args: argparse.Namespace, work: Path) -> None:
    """Every row that was asked for, its records written as they come."""
    images = synthetic_jpegs(work / "images", 96, (224, 224), num_others=BATCH)
    rounds = 1 if args.quick else args.rounds
    setting = Setting(images, Path("none"), None, None, work, args.device, rounds, args.quick, lock=args.lock)
    header = {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "command": command("bench/adapters.py")}
    header |= {
        "device": args.device,
        **machine(),
        **graphics_card(args.device),
        "versions": versions(LIBRARIES),
    }
    folder = work if args.quick else RESULTS
    for name in args.work.split(","):
        path = folder / f"adapters-{name}-{args.device.split(':')[0]}.jsonl"
        partial_path = path.with_suffix(".partial")
        with partial_path.open("w") as file:
            print(json.dumps(header), file=file)
            for record in MEASURES[name](setting):
                kept = {key: value for key, value in record.items() if key != "checkpoint"}
                print(json.dumps(kept), file=file, flush=True)
                print(f"{name}: {summary_line(record)}", file=sys.stderr, flush=True)
        partial_path.replace(path)
        note = " (--quick: a smaller model; the figures mean nothing)" if args.quick else ""
        print(f"\n## {ROWS[name]}{note}\n\n" + "\n".join(section(name, path)), flush=True)


def section(name: str, path: Path) -> list[str]:
    header, *records = read_lines(path)
    return report(header, *TABLES[name](records))


def write_document() -> None:
    """Rewrite what lies between the markers of these rows from the raw files."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ROWS:
        lines = []
        for path in sorted(RESULTS.glob(f"adapters-{name}-c*.jsonl")):
            device = path.stem.rsplit("-", 1)[1]
            lines += [f"On {device.upper()}:", ""] if device != "cpu" else []
            lines += section(name, path)
        text = between(text, f"adapters-{name}", lines or ["Not measured yet.", ""])
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
