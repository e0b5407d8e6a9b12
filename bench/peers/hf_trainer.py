"""transformers.Trainer on a timm model. Its drop_last would drop validation images too: it trains on all images."""

import tempfile

import torch
from common import DECAY, EVAL_BATCH, Clock, arguments, build_model, report, train_set, val_set
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments


class WithLoss(nn.Module):
    """Trainer wants a loss from the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Marks(TrainerCallback):
    def on_evaluate(self, *_: object, **__: object) -> None:
        clock.epoch()


def collate(samples: list) -> dict[str, torch.Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(outputs: object) -> dict[str, float]:
    return {"accuracy": float((outputs.predictions.argmax(1) == outputs.label_ids).mean())}


args = arguments()
train, val = train_set(args), val_set(args)
model = build_model(args, len(train.classes))
folder = tempfile.TemporaryDirectory()
settings = TrainingArguments(
    folder.name,
    per_device_train_batch_size=args.batch,
    per_device_eval_batch_size=EVAL_BATCH,
    num_train_epochs=args.epochs,
    learning_rate=args.lr,
    weight_decay=DECAY,
    lr_scheduler_type="cosine",
    eval_strategy="epoch",
    save_strategy="no",
    dataloader_num_workers=args.workers,
    remove_unused_columns=False,
    label_names=["labels"],
    report_to=[],
    disable_tqdm=True,
    use_cpu=args.device == "cpu",
    seed=args.seed,
)
trainer = Trainer(
    WithLoss(model),
    settings,
    data_collator=collate,
    train_dataset=train,
    eval_dataset=val,
    compute_metrics=accuracy,
    callbacks=[Marks()],
)
clock = Clock()
trainer.train()
clock.stop()
report(args, model, clock, len(train))
