"""LoRA as peft does it, in a bare loop: samples lie normalised in memory; no decoding, augmentation, clipping or files.

peft alone trains no head of a timm model: `modules_to_save` names it.
"""

import argparse
import json

import timm
import torch
from common import DECAY, Clock
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True, help="timm's name, without pretrained weights")
parser.add_argument("--targets", nargs="+", required=True)
parser.add_argument("--rank", type=int, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--px", type=int, default=224)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
torch.manual_seed(0)

model = timm.create_model(args.model, num_classes=2)
head = model.default_cfg["classifier"]
config = LoraConfig(
    r=args.rank, lora_alpha=2 * args.rank, target_modules=args.targets, modules_to_save=[head]
)
model = get_peft_model(model, config).to(args.device).train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, args.lr, weight_decay=DECAY, fused=True)
pool = torch.randn(args.steps * args.batch, 3, args.px, args.px, device=args.device)
labels = torch.randint(0, 2, (len(pool),), device=args.device)
clock = Clock()
for images, targets in zip(pool.split(args.batch), labels.split(args.batch), strict=True):
    loss = cross_entropy(model(images), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    clock.epoch()
clock.stop()
line = {"fit_s": clock.fit_s, "epoch_ends": clock.epoch_ends, "images_per_epoch": args.batch}
print(json.dumps(line | {"num_trained": sum(map(torch.Tensor.numel, trained))}), flush=True)
