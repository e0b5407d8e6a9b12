"""Per-sample predictions as parquet: id, target, scores. The ids make two evaluations comparable."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warmstart.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Predictions:
    """`targets` are class numbers (-1: unknown), or uint8 (N, classes) for sets; `scores` float32 (N, classes).

    Of masks, `scores` are the statistics of each image (see tasks/segmentation.py), which hold the targets' share.
    """

    ids: tuple[str, ...]
    targets: np.ndarray | None
    scores: np.ndarray
    classes: tuple[str, ...]


def write_predictions(
    ids: Sequence[str], targets: np.ndarray | None, scores: np.ndarray, classes: Sequence[str]
) -> bytes:
    """The parquet file's content. Raises what pyarrow raises for columns of different lengths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": pa.array(ids)}
    if targets is not None:
        columns["target"] = _target_column(targets)
    columns["scores"] = pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), scores.shape[1])
    table = pa.table(columns).replace_schema_metadata({"classes": "\n".join(classes)})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _target_column(targets: np.ndarray) -> pa.Array:
    """Class numbers; a set is the list of its members."""
    import pyarrow as pa

    if targets.ndim == 1:
        return pa.array(targets, pa.int32())
    return pa.array([np.flatnonzero(row).tolist() for row in targets], pa.list_(pa.int32()))


def read_predictions(path: Path) -> Predictions:
    """The content of a parquet file of predictions.

    Raises:
        UserError: the file is missing or not one of ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        scores = table["scores"].combine_chunks()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(
            f"cannot read predictions from {path}: {error}", "a file written by warmstart"
        ) from None
    classes = (table.schema.metadata or {}).get(b"classes", b"").decode().split("\n")
    return Predictions(
        tuple(table["id"].to_pylist()),
        _targets(table["target"], len(classes)) if "target" in table.column_names else None,
        scores.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
        tuple(classes),
    )


def _targets(column: pa.ChunkedArray, num_classes: int) -> np.ndarray:
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_numpy()
    targets = np.zeros((len(column), num_classes), dtype=np.uint8)
    for row, members in enumerate(column.to_pylist()):
        targets[row, members] = 1
    return targets
