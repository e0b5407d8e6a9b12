"""timm's training script, from timm's own pieces: dataset, loader with prefetcher, optimizer, scheduler, meter."""

import torch
from common import DECAY, EVAL_BATCH, SCALE, Clock, arguments, build_model, normalisation, report
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy

args = arguments()
mean, std = normalisation(args)
device = torch.device(args.device)
shared = {
    "input_size": (3, args.px, args.px),
    "mean": mean,
    "std": std,
    "num_workers": args.workers,
    "device": device,
}
train_images = create_dataset("", args.data, split="train", is_training=True)
val_images = create_dataset("", args.data, split="val")
augment = {"scale": SCALE, "hflip": 0.5, "color_jitter": 0.0}
train = create_loader(train_images, batch_size=args.batch, is_training=True, **augment, **shared)
val = create_loader(val_images, batch_size=EVAL_BATCH, crop_pct=0.875, **shared)
model = build_model(args, len(train_images.reader.class_to_idx))
optimizer = create_optimizer_v2(model, opt="adamw", lr=args.lr, weight_decay=DECAY)
scheduler, _ = create_scheduler_v2(
    optimizer, "cosine", args.epochs, step_on_epochs=False, updates_per_epoch=len(train)
)
loss_function = torch.nn.CrossEntropyLoss().to(device)
num_updates = 0
clock = Clock()
for epoch in range(args.epochs):
    model.train()
    losses = AverageMeter()
    for images, targets in train:
        loss = loss_function(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        num_updates += 1
        scheduler.step_update(num_updates)
        losses.update(loss.item(), len(targets))
    model.eval()
    top1 = AverageMeter()
    with torch.inference_mode():
        for images, targets in val:
            top1.update(accuracy(model(images), targets)[0].item(), len(targets))
    scheduler.step(epoch + 1, top1.avg)
    clock.epoch()
clock.stop()
report(args, model, clock, len(train) * args.batch)
