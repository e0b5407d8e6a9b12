"""The story of document 001 in a minute: a model tuned from A to a shifted B, against one trained on B alone.

Data: scikit-learn's handwritten digits (1,797 real images, no download). A is the clean digits; B the
same kind of digits rotated and noisy, half of them inverted, of which only a few are labelled. No image
is in both.
"""

from __future__ import annotations

import itertools
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart import api, console
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.shown import Shown
from warmstart.stats import spread

_PIXELS = 16
_NUM_TRAIN, _NUM_VAL = 5, 3  # labelled images of B, per class
_SHARED = {
    "image_size": f"{_PIXELS}x{_PIXELS}",
    "tensorboard": False,
    "warmup": ".1",
    "eval_every": "5epochs",
    "select_by": "loss",
}


@dataclass(frozen=True)
class Story(Shown):
    """Accuracies over seeds, in the order in which they are told."""

    folder: str
    cases: list[tuple[str, list[float]]]
    picture: str
    num_labelled: int
    runs: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"metrics": {label: spread(values)[0] for label, values in self.cases}}

    @property
    def pictures(self) -> list[Path]:
        return [Path(self.picture)]

    def text(self) -> str:
        rows = []
        for label, values in self.cases:
            mean, deviation = spread(values)
            rows.append((label, f"{mean:.3f}", "-" if len(values) < 2 else f"{deviation:.3f}", _list(values)))
        table = console.table("", ("", "mean", "spread", "seeds"), rows)
        told = dict(self.cases)
        gains = np.subtract(told["fine-tuned on B, tested on B"], told["B from scratch, tested on B"])
        train, val = 10 * _NUM_TRAIN, 10 * _NUM_VAL
        return (
            f"{table}\n\n"
            f"With {self.num_labelled} labelled images of B ({train} to train, {val} to choose), "
            f"starting from A gives {gains.mean():+.3f} accuracy on B over starting from nothing "
            f"({gains.min():+.3f} to {gains.max():+.3f} over seeds).\n"
            "The last line is the price: what the tuned model still knows of A.\n\n"
            f"picture: {self.picture}\nruns:    warmstart runs {shlex.quote(self.folder + '/runs')}\n\n"
            "Now your own data (class folders, IDX files, a CSV or parquet file):\n"
            "  warmstart finetune --weights YOUR_CHECKPOINT --data YOUR_FOLDER --dry-run"
        )


def demo(output_dir: str | None = None, seeds: int = 3) -> Story:
    """Write the data, train 3 models per seed, and tell what came out.

    Raises:
        UserError: the folder is in use.
    """
    console.setup()
    root = Path(output_dir) if output_dir is not None else _free_folder()
    if root.exists() and any(root.iterdir()):
        raise UserError(
            f"{root} is not empty", "a new or empty folder", "pass another --output-dir or remove it"
        )
    log.info("writing two small data sets of handwritten digits to %s", root)
    data_a, data_b = write_digits(root)
    told: dict[str, list[float]] = {}
    runs = []
    with console.progress("three models per seed", 3 * seeds) as bar:
        for seed in range(seeds):
            for label, value, run in _one_seed(root, data_a, data_b, seed, bar):
                told.setdefault(label, []).append(value)
                runs.append(run)
    from warmstart.analysis.plots import plot_story

    picture = root / "story.png"
    cases = list(told.items())
    plot_story(cases, picture, "From A to B: handwritten digits, few labels", "test accuracy")
    return Story(str(root), cases, str(picture), 10 * (_NUM_TRAIN + _NUM_VAL), sorted(set(runs)))


def _free_folder() -> Path:
    """warmstart-demo, or with a number where an earlier demo lies."""
    numbered = (Path("warmstart-demo" if n == 1 else f"warmstart-demo-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def _one_seed(
    root: Path, data_a: Path, data_b: Path, seed: int, bar: console.Bar
) -> list[tuple[str, float, str]]:
    """(what, accuracy, run) in the order of the story."""
    folders = {name: str(root / "runs" / f"{name}-seed{seed}") for name in ("a", "b-scratch", "b-tuned")}
    scratch: dict[str, Any] = {
        "model": "builtin:fashion_cnn",
        "weights": "none",
        "batch_size": 64,
        "lr": 3e-3,
        "seed": seed,
    }
    few: dict[str, Any] = {"epochs": 30, "batch_size": 16, "seed": seed}
    steps = (
        ("A from scratch", data_a, "a", {**scratch, "epochs": 8}),
        ("B from scratch", data_b, "b-scratch", {**scratch, **few}),
        ("A fine-tuned on B", data_b, "b-tuned", {**few, "weights": folders["a"], "lr": 1e-3}),
    )
    for number, (what, data, name, settings) in enumerate(steps):
        bar.update(3 * seed + number, what)
        with console.quiet():
            result = api.finetune(data=str(data), output_dir=folders[name], **{**_SHARED, **settings})
        log.info("seed %d: %-17s  test accuracy %.3f", seed, what, result.to_json()["metrics"]["accuracy"])
    table = (
        ("trained on A, tested on A", "a", data_a),
        ("trained on A, tested on B", "a", data_b),
        ("B from scratch, tested on B", "b-scratch", data_b),
        ("fine-tuned on B, tested on B", "b-tuned", data_b),
        ("fine-tuned on B, tested on A", "b-tuned", data_a),
    )
    told = []
    for label, name, data in table:
        with console.quiet():
            accuracy = api.evaluate(folders[name], str(data), split="test").metrics["accuracy"]
        told.append((label, accuracy, folders[name]))
    return told


def write_digits(root: Path) -> tuple[Path, Path]:
    """Class folders of PNG files: A (clean; train, val, test) and B (shifted; few in train)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.clip(digits.images * (255 / 16), 0, 255).astype(np.uint8)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    per_class: dict[int, list[int]] = {number: [] for number in range(10)}
    for index in order.tolist():
        per_class[int(digits.target[index])].append(index)
    # A takes the first 90 of each class, B what is left.
    shares_a = (("train", 0, 60), ("val", 60, 75), ("test", 75, 90))
    train_end, val_end = 90 + _NUM_TRAIN, 90 + _NUM_TRAIN + _NUM_VAL
    shares_b = (("train", 90, train_end), ("val", train_end, val_end), ("test", val_end, 200))
    for name, shares in (("digits-a", shares_a), ("digits-b", shares_b)):
        for split, first, last in shares:
            for number, members in per_class.items():
                folder = root / name / split / str(number)
                folder.mkdir(parents=True)
                for index in members[first:last]:
                    _write(images[index], folder / f"{index:04d}.png", index if name == "digits-b" else None)
    return root / "digits-a", root / "digits-b"


def _write(image: np.ndarray, path: Path, shift_seed: int | None) -> None:
    from PIL import Image

    picture = Image.fromarray(image).resize((_PIXELS, _PIXELS), Image.Resampling.BICUBIC)
    if shift_seed is not None:
        random = np.random.Generator(np.random.Philox(key=[1, shift_seed]))
        turned = np.asarray(picture.rotate(random.uniform(10, 40), Image.Resampling.BILINEAR), np.float32)
        seen = 255 - turned if random.random() < 0.5 else turned
        noisy = seen + random.normal(0, 40, (_PIXELS, _PIXELS))
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    picture.save(path)


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
