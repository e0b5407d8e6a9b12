"""The verbs that only use a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, labelled_data, restore_model, zero_shot_of

if TYPE_CHECKING:
    from warmstart.analysis.check import Check
    from warmstart.analysis.evaluate import Evaluation
    from warmstart.analysis.predict import PredictionResult
    from warmstart.analysis.segment import MaskPredictions


def evaluate(
    model: str,
    data: Data | None = None,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    output_dir: str | None = None,
    pictures: bool | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a run, RUN@step or a file of weights on labelled images; with zero_shot=True what the text tower of an
    image-text model (hf:FOLDER, or a run that kept it) makes of the names of the data's classes.

    `pictures` None draws them unless the run was told not to. `settings`: workers, with `data` how its labels are read
    (label_columns, masks, mask_classes, ignore, mask_remap, mask_colours: else as the run says), zero_shot and
    text_prompts (as --text.prompts), module (an object like that of the run, where it was one), and model_name,
    image_size, mean, std, crop_pct for files that do not say them.
    """
    console.setup()
    from warmstart.analysis.evaluate import evaluate as run_evaluation

    labelled = labelled_data(data, settings)
    chosen = None if data is None else labelled
    restored, workers = restore_model(model, device, settings, zero_shot_of(model, chosen, settings))
    found = run_evaluation(restored, chosen, split, batch_size, workers, output_dir)
    return found.draw() if (restored.has_pictures if pictures is None else pictures) else found


def predict(
    model: str,
    images: list[str],
    *,
    top_k: int | None = None,
    output: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> PredictionResult | MaskPredictions:
    """Classes of image files and folders; `output` is a CSV or JSON file to write.

    A segmenting model writes masks: `output` is a new folder; `scales` and `flip` ask for several looks, and
    `batch_size` windows of an image go through it at once.
    """
    console.setup()
    from warmstart.analysis.predict import check_request, classify
    from warmstart.analysis.segment import segment

    looks = settings.pop("scales", None), settings.pop("flip", None)
    check_request(top_k, output)
    restored, workers = restore_model(model, device, settings)
    if restored.built.segments:
        return segment(restored, images, output, (top_k, *looks), batch_size, workers)
    return classify(restored, images, (top_k, output, *looks), batch_size, workers)


def check(model: str, data: Data, *, batch_size: int = 32, device: str = "auto", **settings: Any) -> Check:
    """Load a checkpoint and run three batches of the data through it: does it fit, and what does it cost?"""
    console.setup()
    from warmstart.analysis.check import check as run_check

    labelled = labelled_data(data, settings)
    restored, workers = restore_model(model, device, settings)
    return run_check(restored, labelled, batch_size, workers)
