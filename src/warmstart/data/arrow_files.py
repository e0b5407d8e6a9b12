"""Table files piece by piece: parquet, and the Arrow streams that Hugging Face's `save_to_disk` leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warmstart.errors import UserError, listing

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def saved_files(root: Path) -> dict[Path, str | None]:
    """File -> split, in order, of a data set or a dictionary of them saved to disk; empty where it is none.

    Raises UserError for one that is not whole.
    """
    if (root / _DICT).is_file():
        splits = _read_json(root / _DICT).get("splits")
        if not isinstance(splits, list) or not splits:
            raise UserError(f"{root / _DICT} names no splits", 'such as {"splits": ["train", "test"]}')
        return {path: str(split) for split in splits for path in _files_of(root / str(split))}
    return dict.fromkeys(_files_of(root)) if (root / _STATE).is_file() and (root / _INFO).is_file() else {}


def _files_of(folder: Path) -> list[Path]:
    state = _read_json(folder / _STATE)
    try:
        files = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / _STATE} lists no data files", "what `save_to_disk` writes") from error
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} was saved with a list of indices beside its rows",
            "the rows themselves",
            "save it again: `datasets.load_from_disk(FOLDER).flatten_indices().save_to_disk(OTHER)`",
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {listing(missing)}", f"the files that {_STATE} lists", "copy them too"
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "what `save_to_disk` writes") from error
    return found if isinstance(found, dict) else {}


def read_schema(path: Path) -> pa.Schema:
    """Columns and types; with Hugging Face's description of them, from the schema or from beside the file.

    Raises UserError for what is no whole table.
    """
    with _readable(path):
        if path.suffix != ".arrow":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as source:
            schema = pa.ipc.open_stream(source).schema
    known = schema.metadata or {}
    info = path.parent / _INFO
    if b"huggingface" not in known and info.is_file():
        schema = schema.with_metadata({**known, b"huggingface": json.dumps({"info": _read_json(info)})})
    return schema


def read_pieces(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.Table, tuple[int, int]]]:
    """Some rows after the others: the columns (`image.bytes` is a field of one), and (rows, bytes) of the piece.

    An Arrow stream stays in the memory map; of a parquet file, a row group is held at a time.
    Raises UserError for a broken file.
    """
    with _readable(path):
        if path.suffix == ".arrow":
            outer = {name.partition(".")[0] for name in columns} | set(columns)
            with pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_stream(source):
                    table = pa.Table.from_batches([batch])
                    wanted = [name for name in table.column_names if name in outer]
                    yield table.select(wanted), (batch.num_rows, batch.nbytes)
            return
        with pq.ParquetFile(path, memory_map=True) as file:
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                table = file.read_row_group(number, columns=list(columns), use_threads=False)
                yield table, (group.num_rows, group.total_byte_size)


def write_pieces(path: Path, pieces: Iterator[dict[str, list[Any]]]) -> None:
    """A parquet file of columns that come piece by piece, each a row group; it appears whole or not at all.

    Raises UserError where the disk refuses, and whatever `pieces` raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for piece in pieces:
                table = pa.table(piece)
                if writer is None:
                    writer = stack.enter_context(
                        pq.ParquetWriter(temporary, table.schema, compression="zstd")
                    )
                writer.write_table(table)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}", "a folder with enough room"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "an Arrow stream" if path.suffix == ".arrow" else "a parquet file"
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}",
            f"{kind}, whole",
            "download the file again",
        ) from error


def features_of(schema: pa.Schema) -> dict[str, dict[str, list[str]]]:
    """Column -> Hugging Face's description of it; empty where there is none or it cannot be read."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    found = found if isinstance(found, dict) else {}
    # A list of labels is described as a list of one description, or as a Sequence or List with a `feature`.
    inner = {name: f[0] if isinstance(f, list) and f else f for name, f in found.items()}
    inner = {name: f.get("feature", f) if isinstance(f, dict) else f for name, f in inner.items()}
    return {name: feature for name, feature in inner.items() if isinstance(feature, dict)}
