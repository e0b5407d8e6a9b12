"""How long the command line takes to answer: medians of whole processes, alternating.

python bench/startup.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "warmstart --help": ["-m", "warmstart", "--help"],
    "warmstart finetune --help": ["-m", "warmstart", "finetune", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(
            f"{name:<28} median {statistics.median(values):.3f} s   ({min(values):.3f} to {max(values):.3f})"
        )


if __name__ == "__main__":
    main()
