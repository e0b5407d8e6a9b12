"""The limit for masks: as in_memory.py, the same steps of a segmenting model with nothing to wait for.

Normalised images and their masks lie in memory; channels_last, fused AdamW, cross entropy; after each epoch a
confusion matrix of as many validation images. No decoding, augmentation, clipping or files.
"""

import argparse
import json

import torch
from common import DECAY, Clock
from torch import nn
from torch.nn.functional import cross_entropy

POOL, IGNORE = 256, 11


def build(name: str, num_classes: int) -> nn.Module:
    if name == "builtin:microsegformer":
        from warmstart.models.builtin.microsegformer import MicroSegFormer

        return MicroSegFormer(num_classes)
    import segmentation_models_pytorch as smp

    arch, encoder = name.removeprefix("smp:").split("/")
    return smp.create_model(arch, encoder, encoder_weights=None, classes=num_classes)


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--counts", type=int, nargs=3, help="training images, val images, classes")
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--px", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--weights", help="not used")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
torch.manual_seed(0)
num_images, num_val, num_classes = args.counts
model = build(args.model, num_classes).to(args.device, memory_format=torch.channels_last)
pool = torch.randn(POOL, 3, args.px, args.px, device=args.device)
pool = pool.contiguous(memory_format=torch.channels_last)
masks = torch.randint(0, IGNORE + 1, (POOL, args.px, args.px), device=args.device)
optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=DECAY, fused=True)
clock = Clock()
for _ in range(args.epochs):
    model.train()
    for first in range(0, num_images, args.batch):
        chosen = torch.randint(0, POOL, (min(args.batch, num_images - first),), device=args.device)
        loss = cross_entropy(model(pool[chosen]), masks[chosen], ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    confusion = torch.zeros(num_classes**2, dtype=torch.long, device=args.device)
    with torch.inference_mode():
        for first in range(0, num_val, args.batch):
            at, size = first % (POOL - args.batch), min(args.batch, num_val - first)
            said, true = model(pool[at : at + size]).max(1).indices, masks[at : at + size]
            valid = true != IGNORE
            cells = true[valid] * num_classes + said[valid]
            confusion += torch.bincount(cells, minlength=num_classes**2)
    confusion.sum().item()
    clock.epoch()
clock.stop()
print(json.dumps({"fit_s": clock.fit_s, "epoch_ends": clock.epoch_ends, "images_per_epoch": num_images}))
