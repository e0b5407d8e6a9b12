"""The limit: the same steps with nothing to wait for.

Normalised samples lie in memory, different ones each step; channels_last, fused AdamW, the same number of validation
images per epoch. As warmstart, it trains on the last short batch too. No decoding, augmentation, clipping or files.
"""

import json

import torch
from common import DECAY, EVAL_BATCH, Clock, arguments, build_model, trained_parameters
from torch.nn.functional import cross_entropy

POOL = 1024

args = arguments()
num_images, num_val, num_classes = args.counts
model = build_model(args, num_classes).to(memory_format=torch.channels_last)
pool = torch.randn(POOL, 3, args.px, args.px, device=args.device)
pool = pool.contiguous(memory_format=torch.channels_last)
labels = torch.randint(0, num_classes, (POOL,), device=args.device)
optimizer = torch.optim.AdamW(trained_parameters(model), args.lr, weight_decay=DECAY, fused=True)
clock = Clock()
for _ in range(args.epochs):
    model.train()
    for first in range(0, num_images, args.batch):
        chosen = torch.randint(0, POOL, (min(args.batch, num_images - first),), device=args.device)
        loss = cross_entropy(model(pool[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=args.device)
    with torch.inference_mode():
        for first in range(0, num_val, EVAL_BATCH):
            at, size = first % POOL, min(EVAL_BATCH, num_val - first)
            right += (model(pool[at : at + size]).argmax(1) == labels[at : at + size]).sum()
    right.item()
    clock.epoch()
clock.stop()
print(json.dumps({"fit_s": clock.fit_s, "epoch_ends": clock.epoch_ends, "images_per_epoch": num_images}))
