"""The loop that most scripts write: DataLoader, AdamW, cosine, nothing else."""

from common import DECAY, Clock, arguments, build_model, loaders, report, right_answers, trained_parameters
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

args = arguments()
train, val = loaders(args)
model = build_model(args, len(train.dataset.classes))
optimizer = AdamW(trained_parameters(model), args.lr, weight_decay=DECAY)
scheduler = CosineAnnealingLR(optimizer, args.epochs * len(train))
clock = Clock()
for _ in range(args.epochs):
    model.train()
    for images, targets in train:
        loss = cross_entropy(model(images.to(args.device)), targets.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    right_answers(model, val, args.device)
    clock.epoch()
clock.stop()
report(args, model, clock, len(train) * args.batch)
