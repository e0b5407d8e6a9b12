"""A small folder of the shape in which Tiny ImageNet is distributed, for the tests that read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# As in the real words.txt: the second of two is no other's first word, the third is not one of ours.
WORDS = {
    "n01629819": "European fire salamander, Salamandra salamandra",
    "n01443537": "goldfish, Carassius auratus",
    "n01641577": "bullfrog, Rana catesbeiana",
    "n00001740": "entity",
}
WNIDS = ("n01641577", "n01443537", "n01629819")  # not sorted, as in the real wnids.txt
CLASSES = ("goldfish", "European fire salamander", "bullfrog")


def write_tiny_imagenet(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Grey noise of 64 x 64 pixels, of its own brightness in each class; boxes and unlabelled test images too."""
    rng = np.random.default_rng(0)

    def picture(path: Path, brightness: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(brightness, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)

    lines = []
    for number, wnid in enumerate(WNIDS):
        for image in range(num_train):
            picture(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 60 + 70 * number)
        boxes = "".join(f"{wnid}_{image}.JPEG\t0\t10\t63\t58\n" for image in range(num_train))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
        for image in range(num_val):
            name = f"val_{number + len(WNIDS) * image}.JPEG"
            picture(root / "val" / "images" / name, 60 + 70 * number)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for image in range(2):
        picture(root / "test" / "images" / f"test_{image}.JPEG", 128)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    return root
