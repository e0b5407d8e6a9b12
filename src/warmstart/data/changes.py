"""Files that were written while nobody looked: another content of the same size does not change a fingerprint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from warmstart.data.masks import MaskPixels
from warmstart.data.samples import FilePixels, Pixels, Samples
from warmstart.data.store import StoredPixels


def written_since(splits: Iterable[Samples], when: float) -> list[str]:
    """The samples whose image or mask is a file that was written after a moment (seconds, as `stat` counts them)."""
    found: dict[str, None] = {}
    for samples in splits:
        for pixels in (samples.pixels, samples.masks):
            paths = () if pixels is None else _files(pixels)
            if paths:
                late = (path.stat().st_mtime > when for path in paths)
                found |= {name: None for name, is_late in zip(samples.ids, late, strict=True) if is_late}
    return list(found)


def _files(pixels: Pixels) -> tuple[Path, ...]:
    """One for each image; none for those in tables or in memory."""
    if isinstance(pixels, StoredPixels):
        return _files(pixels.source)
    if isinstance(pixels, MaskPixels):
        return _files(pixels.files)
    return pixels.paths if isinstance(pixels, FilePixels) else ()
