"""Captions: a text of its own for each training image, from a column of the data's table.

Shapes: N images of a batch, L tokens.
"""

from __future__ import annotations

import torch

from warmstart.config.schema import Config
from warmstart.data.batches import Batch
from warmstart.data.dataset import Dataset
from warmstart.errors import UserError, listing
from warmstart.models.build import BuiltModel


class Captions:
    """The tokens of all training images; called with a batch, those of its images (N, L) and their mask, or None."""

    def __init__(self, built: BuiltModel, texts: list[str], device: torch.device) -> None:
        assert built.text is not None, "captions are of a text tower"
        tokens = built.text.read(texts)
        self._ids = torch.tensor(tokens.ids, device=device)
        self._mask = None if tokens.mask is None else torch.tensor(tokens.mask, device=device)

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = torch.from_numpy(batch.indices).to(self._ids.device)
        return self._ids[rows], None if self._mask is None else self._mask[rows]


def read_captions(
    config: Config, dataset: Dataset, built: BuiltModel, device: torch.device
) -> Captions | None:
    """Those that --text.captions names; None without it.

    Raises:
        UserError: images without a text, data beside --data that have none, or no tokenizer.
    """
    column = config.text.captions
    if column is None:
        return None
    if dataset.mixture is not None:
        raise UserError(
            f"--text.captions {column}: what is mixed in with --mix or --retain.replay has no captions",
            "images of --data alone",
            "leave one of the two out",
        )
    if config.retain.lwf:
        raise UserError(
            "--retain.lwf holds on to answers about classes, and captions are none",
            "--retain.l2sp or --retain.replay",
        )
    captions = dataset.captions or {}
    texts = [str(captions.get(name) or "").strip() for name in dataset.training.ids]
    empty = [name for name, text in zip(dataset.training.ids, texts, strict=True) if not text]
    if empty:
        raise UserError(
            f"--text.captions {column}: {len(empty)} training images have no text: {listing(empty, 5)}",
            "a text for each training image",
            "fill these cells, or remove the rows",
        )
    return Captions(built, texts, device)
