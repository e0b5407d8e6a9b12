"""`python -m warmstart`: the same as the command `warmstart`."""

import sys

from warmstart.cli import main

if __name__ == "__main__":
    sys.exit(main())
