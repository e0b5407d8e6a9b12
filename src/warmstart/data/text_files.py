"""Small text files of a user."""

from __future__ import annotations

from pathlib import Path

from warmstart.errors import UserError


def read_text(path: Path, expected: str) -> str:
    """The content of a UTF-8 file. Raises UserError for another encoding, and where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start})", f"{expected}, in UTF-8", "save it as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "a readable file") from error
