"""The verb that hands a model to another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, labelled_data, restore_model
from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.methods.export.export import Exported


def export(
    model: str,
    *,
    to: str,
    output: str | None = None,
    data: Data | None = None,
    num_images: int = 32,
    **settings: Any,
) -> Exported:
    """Write a run, RUN@step or a file of weights as onnx, torch-export, safetensors, hf, timm or source, with classes,
    preprocessing, thresholds and licence; and compare its answers, read again in a fresh process, with the model's.

    `output` is the new file or folder, beside the model by default; `num_images` of `data` (the run's own by default)
    are compared. `settings`: workers, task (of several), and for files that do not say them module, model_name,
    image_size, mean, std, crop_pct.

    Raises:
        UserError: a format that cannot hold this model, or other answers: then nothing is kept.
    """
    console.setup()
    from warmstart.methods.export.export import ExportRequest, check_format
    from warmstart.methods.export.export import export as write_export

    check_format(to)
    if num_images < 1:
        raise UserError(f"--num-images {num_images}", "at least 1")
    chosen = labelled_data(data, settings) if data is not None else None
    restored, workers = restore_model(model, "cpu", settings, merged=True)
    return write_export(ExportRequest(to, output, chosen, num_images, workers), restored)
