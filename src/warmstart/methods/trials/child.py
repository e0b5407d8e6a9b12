"""The process of one trial: it trains a run or goes on with it, and measures nothing on test.

`python -m warmstart.methods.trials.child RUN CONFIG [DEVICE]`. What a finished run has beyond that (its gain over the
start, on test too, and pictures) is made by `warmstart resume RUN`, for those runs that somebody wants to have it of.
"""

from __future__ import annotations

import sys
from pathlib import Path

from warmstart import console
from warmstart.config import io as config_io
from warmstart.engine import train
from warmstart.errors import Interrupted, UserError
from warmstart.run import layout


def main(folder: str, config: str, device: str | None = None) -> int:
    """The exit code, as of the command line."""
    console.setup()
    try:
        if layout.is_run(Path(folder)):
            train.resume(folder, {"device": device, "workers": None})
        else:
            train.finetune(config_io.load({"output_dir": folder, "device": device}, config))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
