"""A program of its own: what an exported model answers, read by the library that it was exported for, and by no part of
warmstart where that is another one.

    python -P answer.py FORMAT PATH IMAGES.npy LOGITS.npy [JSON of the model's name and preprocessing]

IMAGES are float32 (N, C, h, w), normalised. They are asked about in batches of 1, 2, 3, ... images. `raw` in the JSON
is a folder of 0.png, 1.png, ...: the same images as they came, which the library itself prepares; what is answered
then goes to PREPARED.npy beside LOGITS.npy.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Answers = Callable[[np.ndarray], np.ndarray]
_MOST = 8  # images at once
PREPARED = "prepared.npy"


def onnx(path: Path, told: dict[str, Any]) -> Answers:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def torch_export(path: Path, told: dict[str, Any]) -> Answers:
    import torch

    return _of_module(torch.export.load(path).module())


def timm(path: Path, told: dict[str, Any]) -> Answers:
    import timm

    return _of_module(timm.create_model(f"local-dir:{path}", pretrained=True).eval())


def hf(path: Path, told: dict[str, Any]) -> Answers:
    import transformers

    kinds = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"]
    segments = any("SemanticSegmentation" in kind for kind in kinds)
    kind = (
        transformers.AutoModelForSemanticSegmentation
        if segments
        else transformers.AutoModelForImageClassification
    )
    model = kind.from_pretrained(path, local_files_only=True).float().eval()
    return _of_module(lambda images: model(images).logits)


def timm_inputs(path: Path, files: list[Path]) -> np.ndarray:
    import timm
    from PIL import Image

    settings = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{path}"))
    transform = timm.data.create_transform(**settings, is_training=False)
    return np.stack([transform(Image.open(file)).numpy() for file in files])


def hf_inputs(path: Path, files: list[Path]) -> np.ndarray:
    import transformers
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
    prepared = [processor(Image.open(file), return_tensors="pt")["pixel_values"] for file in files]
    return np.concatenate([pixels.numpy() for pixels in prepared])


def own(path: Path, told: dict[str, Any]) -> Answers:
    import torch

    from warmstart.inference.restore import restore

    given: dict[str, Any] = {key: tuple(told[key]) for key in ("image_size", "mean", "std") if key in told}
    return _of_module(restore(str(path), torch.device("cpu"), told.get("name"), given).built.module)


def _of_module(module: Callable[[Any], Any]) -> Answers:
    import torch

    def answers(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).float().numpy()

    return answers


def batches(num: int) -> Iterator[slice]:
    """1, 2, 3, ... images: whoever took the size of a batch for a constant fails."""
    start, size = 0, 1
    while start < num:
        yield slice(start, start + size)
        start, size = start + size, min(size + 1, _MOST)


READERS = {
    "onnx": onnx,
    "torch-export": torch_export,
    "timm": timm,
    "hf": hf,
    "safetensors": own,
    "source": own,
}

# Those that prepare images by what the folder says.
INPUTS = {"timm": timm_inputs, "hf": hf_inputs}

if __name__ == "__main__":
    to, path, images, logits, *more = sys.argv[1:]
    told = json.loads(more[0]) if more else {}
    answer = READERS[to](Path(path), told)
    arrays = {Path(logits): np.load(images)}
    if "raw" in told:
        pictures = sorted(Path(told["raw"]).iterdir(), key=lambda file: int(file.stem))
        arrays[Path(logits).with_name(PREPARED)] = INPUTS[to](Path(path), pictures)
    for target, array in arrays.items():
        np.save(target, np.concatenate([answer(array[part]) for part in batches(len(array))]))
