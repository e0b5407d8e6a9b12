"""What keeping freed memory is worth: the same training with and without it, in alternating runs.

    python bench/allocator.py --data DOGCAT --weights mobilenetv3_small_100.cifar10-64px.safetensors [--rounds 5]

Without it means with glibc's variables set to nothing, which warmstart leaves alone. Prints the median seconds of an
epoch from the second on, with evaluation, the page faults of the whole process, and their ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from setting import read_lines, start_weights
from sides import as_flags


def run(flags: list[str], folder: Path, is_kept: bool) -> tuple[float, int]:
    """(seconds of an epoch from the second on, page faults)."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"
    }
    environment |= {} if is_kept else {"GLIBC_TUNABLES": ""}
    command = [sys.executable, "-m", "warmstart", "finetune", *flags, "--output-dir", str(folder)]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            out.seek(0)
            sys.exit(out.read().decode()[-2000:])
    ends = [row["seconds"] for row in read_lines(folder / "metrics.jsonl") if row["kind"] == "train"]
    return (ends[-1] - ends[0]) / (len(ends) - 1), usage.ru_minflt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        weights = start_weights(Path(given.weights), work)
        fixed = {"weights": weights, "data": given.data, "image_size": 128, "epochs": 4, "lr": 1e-3}
        fixed |= {"augment": "standard", "log_every": "1epochs", "device": "cpu", "cache_dir": work / "cache"}
        flags = as_flags(fixed | {"model": "timm:mobilenetv3_small_100"})
        run(flags, work / "first", is_kept=True)  # decodes
        found: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
        for number in range(given.rounds):
            for is_kept in (number % 2 == 0, number % 2 == 1):
                found[is_kept].append(run(flags, work / f"{number}-{is_kept}", is_kept))
    for is_kept, name in ((True, "kept"), (False, "returned")):
        seconds, faults = zip(*found[is_kept], strict=True)
        print(
            f"{name:9s} {statistics.median(seconds):.2f} s per epoch ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{statistics.median(faults):.0f} page faults"
        )
    ratios = [before[0] / after[0] for before, after in zip(found[False], found[True], strict=True)]
    print(f"returned / kept: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
