"""The package transformers: imported when it is needed, and kept from talking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from warmstart.errors import UserError
from warmstart.models.sizes import first_line


def import_transformers() -> Any:
    """The package transformers, or a UserError that says how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"models named hf:FOLDER need transformers ({first_line(error)})",
            "the package, an optional extra",
            "pip install 'warmstart[hf]'",
        ) from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' report and progress bar: what matters of them is told here."""
    logging = import_transformers().utils.logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
