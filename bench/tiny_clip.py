"""A CLIP that is pre-trained in seconds: coloured shapes and their captions, real classes and files of transformers.

    python bench/tiny_clip.py FOLDER [--seed 0] [--steps 300]

writes FOLDER/clip (as save_pretrained does: weights, tokenizer, image processor) and FOLDER/data (class folders of
colour-shape pairs that the pre-training never saw, though it saw each colour and each shape). Tests and
clip_shapes.py build on it.
Shapes: N images of S x S pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 32
COLOURS = {
    "red": (205, 45, 45),
    "green": (45, 170, 60),
    "blue": (50, 80, 215),
    "yellow": (225, 205, 50),
    "purple": (150, 55, 180),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "a {}")
# Two shapes of each colour are held out, and two colours of each shape: neither alone tells the classes apart.
HELD_OUT = tuple(
    f"{colour}_{SHAPES[(number + step) % len(SHAPES)]}"
    for number, colour in enumerate(COLOURS)
    for step in (0, 1)
)
SEEN = tuple(f"{c}_{s}" for c in COLOURS for s in SHAPES if f"{c}_{s}" not in HELD_OUT)


def draw(name: str, rng: np.random.Generator) -> np.ndarray:
    """uint8 (S, S, 3): the shape somewhere, in some size and shade, on a noisy ground."""
    colour, shape = name.split("_")
    radius = rng.uniform(7, 12)
    x0, y0 = rng.uniform(radius, SIDE - radius, 2)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    dx, dy = (x - x0) / radius, (y - y0) / radius
    inside = {
        "circle": dx**2 + dy**2 < 1,
        "square": np.maximum(abs(dx), abs(dy)) < 0.85,
        "triangle": (abs(dx) < (dy + 1) / 2) & (dy < 0.9),
        "cross": (np.minimum(abs(dx), abs(dy)) < 0.3) & (np.maximum(abs(dx), abs(dy)) < 1),
        "ring": (dx**2 + dy**2 < 1) & (dx**2 + dy**2 > 0.4),
    }[shape]
    ground = rng.uniform(60, 190) + rng.normal(0, 18, (SIDE, SIDE, 3))
    ink = np.array(COLOURS[colour]) * rng.uniform(0.75, 1.1) + rng.normal(0, 18, (SIDE, SIDE, 3))
    return np.where(inside[..., None], ink, ground).clip(0, 255).astype(np.uint8)


def pictures(names: Sequence[str], num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, S, S, 3) and labels (N,), `num` of each name."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(names)), num)
    return np.stack([draw(names[label], rng) for label in labels]), labels


def write_folders(root: Path, splits: dict[str, int], seed: int, names: Sequence[str] = HELD_OUT) -> Path:
    """Class folders root/SPLIT/NAME/*.png with so many images of each name."""
    for number, (split, num) in enumerate(splits.items()):
        images, labels = pictures(names, num, 1000 * seed + number)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = root / split / names[label] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return root


def captions(names: Sequence[str]) -> list[str]:
    return [template.format(name.replace("_", " ")) for name in names for template in TEMPLATES]


def make_tokenizer() -> Any:
    """CLIP's tokenizer with byte pairs learned from the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    special = ["<|startoftext|>", "<|endoftext|>"]
    learned = Tokenizer(
        models.BPE(unk_token=special[1], end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    learned.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    ends = [f"{letter}</w>" for letter in sorted(alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, end_of_word_suffix="</w>",
        show_progress=False,
    )  # fmt: skip
    learned.train_from_iterator(captions((*SEEN, *HELD_OUT)), trainer)
    model = json.loads(learned.to_str())["model"]
    vocab = dict(model["vocab"])
    for token in ends:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=24)


def make_model(tokenizer: Any, width: int = 64, layers: int = 3) -> Any:
    """A CLIPModel with random weights from torch's generator."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    text = {
        **tower,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": layers, "image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


def make_image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def pretrain(model: Any, tokenizer: Any, processor: Any, steps: int, seed: int, batch: int = 100) -> float:
    """CLIP's own loss on images of the seen names and their captions; returns that of the last step."""
    images, labels = pictures(SEEN, 100, 77 + seed)
    mean, std = (np.array(values, np.float32) for values in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy())
    texts = tokenizer(captions(SEEN), padding=True, return_tensors="pt")
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    loss = torch.zeros(())
    model.train()
    for _ in range(steps):
        rows = rng.integers(0, len(labels), batch)
        chosen = len(TEMPLATES) * labels[rows] + rng.integers(0, len(TEMPLATES), batch)
        found = model(
            pixel_values=pixels[rows],
            input_ids=texts["input_ids"][chosen],
            attention_mask=texts["attention_mask"][chosen],
            return_loss=True,
        )
        loss = found.loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return float(loss.detach())


def write_clip(folder: Path, seed: int = 0, steps: int = 300) -> Path:
    """The model, its tokenizer and its image processor, in `folder`."""
    from transformers import CLIPProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, images = make_tokenizer(), make_image_processor()
        model = make_model(tokenizer)
        if steps:
            pretrain(model, tokenizer, images, steps, seed)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    clip = write_clip(given.folder / "clip", given.seed, given.steps)
    data = write_folders(given.folder / "data", {"train": 20, "val": 20, "test": 50}, given.seed)
    print(f"{clip} and {data}; next: warmstart evaluate hf:{clip} --zero-shot --data {data} --split test")


if __name__ == "__main__":
    main()
