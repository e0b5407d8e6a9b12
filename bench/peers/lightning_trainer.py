"""lightning.Trainer with a LightningModule as its documentation writes one."""

import logging
import warnings

import lightning
import torch
from common import DECAY, Clock, arguments, build_model, loaders, report, trained_parameters
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR


class Classifier(lightning.LightningModule):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list, _: int) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list, _: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_validation_end(self) -> None:
        clock.epoch()

    def configure_optimizers(self) -> dict:
        optimizer = AdamW(trained_parameters(self.net), args.lr, weight_decay=DECAY)
        scheduler = CosineAnnealingLR(optimizer, args.epochs * len(train))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
args = arguments()
train, val = loaders(args)
model = build_model(args, len(train.dataset.classes))
trainer = lightning.Trainer(
    max_epochs=args.epochs,
    accelerator="cpu" if args.device == "cpu" else "gpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
)
clock = Clock()
trainer.fit(Classifier(model), train, val)
clock.stop()
report(args, model.to(args.device), clock, len(train) * args.batch)
