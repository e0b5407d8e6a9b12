"""What the founding documents advise, as one table of rules over facts. No torch.

Slots (the first word of an id) are decided in the order of the table, and within a slot the first rule whose condition
holds is taken: of two rules that contradict each other the upper one wins, and docs/advise.md says why. Of the slot
`memory` one after the other is taken until what is advised fits; of `try`, `warn` and `later` all that apply are told.
`row` is that of the documents' checklist (1.04: document 001, fourth row); "own" marks what none of them says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmstart.methods.advise_facts import Facts

GB = 2**30
METHODS: dict[str, dict[str, Any]] = {
    "head": {"adapt.freeze": "backbone"},
    "last-blocks": {"adapt.freeze": "backbone<.5"},
    "layer-wise": {"adapt.layer_decay": 0.95},
    "lora": {"lora.rank": 8},
    "qlora": {"lora.rank": 8, "lora.bits": 4},
    "full": {},
}


@dataclass(frozen=True)
class Rule:
    """`sets` maps paths of settings, and `method`, to a value or to a function of the facts."""

    id: str
    row: str
    applies: Callable[[Facts], bool]
    sets: Mapping[str, Any]
    reason: str

    @property
    def slot(self) -> str:
        return self.id.partition(".")[0]


def _always(facts: Facts) -> bool:
    return True


RULES: tuple[Rule, ...] = (
    # What trains.
    Rule("method.random", "own", lambda f: f.is_random, {"method": "full"},
         "Weights that were never trained have nothing to keep: everything trains."),
    Rule("method.masks", "0.18", lambda f: f.has_masks, {"method": lambda f: f.full_method},
         "Masks: a decoder has to learn, and what the documents say on freezing is about classifiers."),
    Rule("method.cheap", "4.19", lambda f: f.is_transformer and f.wants_cheap, {"method": "lora"},
         "LoRA for quick trials and for edge devices: few parameters train, and the file of them is small."),
    Rule("method.few", "4.19", lambda f: f.is_transformer and f.is_few, {"method": "lora"},
         "Transformer, fewer than 1,000 training images: LoRA; tuning everything would learn them by heart."),
    Rule("method.some", "4.19", lambda f: f.is_transformer and f.is_some and not f.wants_best, {"method": "lora"},
         "Transformer, 1,000 to 10,000 images: LoRA, and everything only for the best result."),
    Rule("method.plenty", "4.08, 4.19", lambda f: f.is_transformer, {"method": "layer-wise"},
         "Transformer, more than 10,000 images or the best result wanted: everything, with rates that fall by .95 from"
         " block to block towards the input."),
    Rule("method.good", "0.17", lambda f: f.is_good and not f.wants_best, {"method": "head"},
         "The start model is above 90 % on val already: only the head trains, which is stable."),
    Rule("method.head", "0.14, 0.17", lambda f: f.is_few or (f.is_few_for_blocks and not f.wants_best),
         {"method": "head"},
         "Convolutional, fewer than 5,000 images (for the best result fewer than 1,000): the backbone keeps what it"
         " knows, and is computed only once."),
    Rule("method.blocks", "0.17",
         lambda f: f.is_few_for_blocks or (f.is_some and not f.wants_best) or f.wants_cheap,
         {"method": "last-blocks"},
         "Convolutional, between 5,000 and 10,000 images, the document's two thresholds (for the best result 1,000 to"
         " 5,000; for a quick one or an edge device also above): the last half of the blocks."),
    Rule("method.full", "0.18", _always, {"method": "full"},
         "Convolutional, with data enough: no freezing has the largest gain."),
    # How fast.
    Rule("rate.random", "own", lambda f: f.is_random, {"optim.lr": 1e-3},
         "From nothing: AdamW's usual .001."),
    Rule("rate.adapters", "4.07", lambda f: f.has_adapters, {"optim.lr": 5e-4},
         "LoRA: 5e-4, 50 times the rate of tuning everything."),
    Rule("rate.recorded", "0.16, 1.04", lambda f: f.original_lr is not None and f.method != "head",
         {"optim.lr": lambda f: f.recorded_rate},
         "The rate of the original training is recorded: 1/50 of it, but not below 5e-5, and not above .001 or half of"
         " it."),
    Rule("rate.masks", "2.05", lambda f: f.has_masks, {"optim.lr": 4e-4},
         "Masks: 4e-4, as document 002 starts again."),
    Rule("rate.new-head", "1.05, 4.07", lambda f: f.is_transformer and f.head != "kept",
         {"optim.lr": 1e-5, "adapt.lrs": "head=5e-5"},
         "Transformer: 1e-5, and 5e-5 for a head that knows nothing of these classes yet."),
    Rule("rate.transformer", "4.07", lambda f: f.is_transformer, {"optim.lr": 1e-5},
         "Transformer, everything trains: 1e-5."),
    Rule("rate.good", "0.15, 0.24", lambda f: f.is_good, {"optim.lr": 5e-4, "optim.min_lr": 1e-5},
         "A start model above 90 % must not be spoilt: .0005, the conservative recipe."),
    Rule("rate.head", "0.14", lambda f: f.method == "head", {"optim.lr": 1e-3, "optim.min_lr": 1e-5},
         "Only the head trains: .001 down to .00001."),
    Rule("rate.layered", "0.30, 1.05", lambda f: f.head != "kept",
         {"optim.lr": 1e-3, "optim.min_lr": 1e-5, "adapt.lrs": "backbone=2e-4"},
         "Start with .001 for the new head; the backbone has a fifth of it, as in document 001's layers."),
    Rule("rate.first", "0.30, 1.04", _always, {"optim.lr": 1e-3, "optim.min_lr": 1e-5},
         "Nobody recorded the original rate: .001 first, then .0005 or .002."),
    Rule("schedule.head", "0.14", lambda f: f.method == "head", {"optim.scheduler": "cosine"},
         "Cosine; behind a frozen backbone nothing needs a warmup."),
    Rule("schedule.cosine", "1.07, 4.15", _always, {"optim.scheduler": "cosine", "optim.warmup": 0.1},
         "Cosine, after a warmup over .1 of the run."),
    Rule("decay.masks", "2.05", lambda f: f.has_masks, {"optim.weight_decay": 2e-4},
         "Masks: 2e-4, as document 002 starts again."),
    Rule("decay.few", "4.16", lambda f: f.is_transformer and f.is_few, {"optim.weight_decay": 0.05},
         "Transformer, fewer than 1,000 images: .05 instead of .01, against overfitting."),
    Rule("decay.transformer", "4.16", lambda f: f.is_transformer, {"optim.weight_decay": 0.01},
         "Transformer: .01."),
    Rule("decay.few-convolutional", "1.10", lambda f: f.is_few, {"optim.weight_decay": 2e-4},
         "Convolutional, fewer than 1,000 images: 2e-4, slightly more than 1e-4; dropout stays the model's own."),
    Rule("decay.convolutional", "1.10", _always, {"optim.weight_decay": 1e-4},
         "Convolutional: 1e-4; dropout stays the model's own."),
    # From what.
    Rule("augment.recorded", "1.09", lambda f: f.augment_recorded, {"data.augment": "auto"},
         "The run that the weights come from recorded its augmentation: the same again."),
    Rule("augment.small", "0.20", lambda f: min(f.height, f.width) < 64 or f.num_channels == 1 or f.has_sides,
         {"data.augment": "light"},
         "Images below 64 px, grey ones, or classes with left and right in their names: light, nothing is mirrored."),
    Rule("augment.overfit", "4.16", lambda f: f.is_some, {"data.augment": "standard"},
         "Photographs, at most 10,000: crops and mirror images against overfitting; add --flip 0 where the mirror image"
         " is another class."),
    Rule("augment.light", "0.20", _always, {"data.augment": "light"},
         "Light, as is usual for tuning."),
    Rule("smoothing.many", "own",
         lambda f: f.task == "classes" and f.num_classes >= 10 and not f.is_few and f.trains_all,
         {"task.label_smoothing": 0.1},
         "10 classes or more, 1,000 images or more, and everything trains: .1, as is usual."),
    Rule("smoothing.none", "own", _always, {"task.label_smoothing": 0.0},
         "None: no document asks for it, and scores stay calibrated."),
    Rule("batch.masks", "own", lambda f: f.has_masks, {"data.batch_size": 8},
         "Masks: 8 images; every pixel is a target."),
    Rule("batch.contrastive", "own", lambda f: f.is_contrastive, {"data.batch_size": 32},
         "A contrastive head: 32 images per step, whatever an epoch has; the other images of a batch are the wrong"
         " answers that each is told from."),
    Rule("batch.transformer", "4.07, 4.20", lambda f: f.is_transformer, {"data.batch_size": lambda f: f.batch(32)},
         "Transformer: 32 images per step (the documents' 16 x 2 and 32 x 1), halved until an epoch has 20 steps."),
    Rule("batch.head", "0.02", lambda f: f.method == "head", {"data.batch_size": lambda f: f.batch(128)},
         "Only the head trains: 128, halved until an epoch has 20 steps."),
    Rule("batch.convolutional", "0.02", _always, {"data.batch_size": lambda f: f.batch(256)},
         "Convolutional: 256, halved until an epoch has 20 steps."),
    # How long.
    Rule("epochs.quick", "0.25", lambda f: f.goal == "quick", {"train.epochs": 5},
         "Quick: the lower end of 5 to 20."),
    Rule("epochs.random", "0.25", lambda f: f.is_random, {"train.epochs": 100},
         "From nothing 100 to 200: the lower end."),
    Rule("epochs.best", "0.12", lambda f: f.takes_long, {"train.epochs": 50},
         "The best result: 50, and early stopping."),
    Rule("epochs.adapters", "4.07", lambda f: f.has_adapters and not f.wants_best, {"train.epochs": 10},
         "LoRA: 10."),
    Rule("epochs.first", "0.25, 0.30, 4.07", _always, {"train.epochs": 20},
         "First 20, and a look whether there is a gain; `warmstart continue` adds more."),
    Rule("patience.none", "own", lambda f: f.num_val == 0, {},
         "Without val images nothing can stop a run early."),
    Rule("patience.random", "2.05", lambda f: f.is_random, {"train.patience": 30},
         "From nothing: 30 validations without a new best."),
    Rule("patience.long", "0.12", lambda f: f.takes_long, {"train.patience": 15},
         "50 epochs: 15 validations without a new best, as in document 000's code."),
    Rule("patience.quick", "4.16", lambda f: f.goal == "quick", {"train.patience": 3},
         "Quick: the lower end of 3 to 5 validations."),
    Rule("patience.short", "4.16", _always, {"train.patience": 5},
         "5 validations without a new best, of 3 to 5."),
    # With what.
    Rule("precision.half", "4.14, 4.17, 4.18", lambda f: f.on_gpu,
         {"train.precision": "auto"}, "A GPU: bf16, or fp16 where it has none; activations take half the memory."),
    Rule("precision.full", "4.18", _always, {"train.precision": "float32"},
         "No CUDA device: half precision would be emulated, and slower."),
    Rule("select.rare", "own", lambda f: f.task == "classes" and f.imbalance >= 5 and f.num_val > 0,
         {"train.select_by": "f1"},
         "The largest class has at least 5 times the images of the smallest: macro F1 chooses, as accuracy hides rare"
         " classes."),
    Rule("select.usual", "own", _always, {"train.select_by": "auto"},
         "The task's usual metric chooses the best checkpoint."),
    # Where memory does not suffice, one after the other.
    Rule("memory.batch", "4.14, 4.20", lambda f: not f.is_contrastive, {},
         "Half as many images at once and twice the accumulation, down to 4: the effective batch stays."),
    Rule("memory.checkpointing", "own", lambda f: f.method != "head", {"train.gradient_checkpointing": True},
         "Gradient checkpointing: activations are computed again instead of being kept, for about a third more time."),
    Rule("memory.blocks", "0.17", lambda f: f.trains_all and (f.has_masks or not f.is_transformer),
         {"method": "last-blocks"}, "Only the last half of the blocks trains: the others keep no activations."),
    Rule("memory.head", "0.14, 4.14", lambda f: not f.has_masks and not f.is_transformer and f.method != "head",
         {"method": "head"}, "Only the head trains: nothing before it keeps activations."),
    Rule("memory.lora", "4.19", lambda f: f.is_transformer and not f.has_masks and not f.has_adapters,
         {"method": "lora"}, "LoRA: no gradients and moments of the backbone."),
    Rule("memory.qlora", "4.19", lambda f: f.is_transformer and not f.has_masks and f.method != "qlora",
         {"method": "qlora"}, "QLoRA: the backbone in 4 bits."),
    # What else is worth a try, in this order.
    Rule("try.head", "0.14", lambda f: f.method != "head" and not f.has_masks and not f.is_random, {"method": "head"},
         "Only the head trains: the cheapest, and it says what the features are worth as they are."),
    Rule("try.blocks", "0.17",
         lambda f: f.method != "last-blocks" and not f.is_random and (f.has_masks or not f.is_transformer),
         {"method": "last-blocks"}, "The last half of the blocks: between the head alone and everything."),
    Rule("try.lora", "4.19",
         lambda f: f.is_transformer and not f.has_masks and not f.is_random and not f.has_adapters, {"method": "lora"},
         "LoRA: few parameters train, and the weights stay near their start."),
    Rule("try.full", "0.18, 4.08", lambda f: not f.trains_all, {"method": lambda f: f.full_method},
         "Everything trains: the largest gain where the data suffice, and the most to lose where they do not."),
    Rule("try.faster", "0.30, own", _always, {}, "The same with three times the rate."),
    Rule("try.slower", "0.24, own", _always, {}, "The same with a third of the rate."),
    # What to know.
    Rule("warn.memory", "4.10", lambda f: f.is_large and f.on_gpu and (f.device_memory or 24 * GB) < 24 * GB, {},
         "Document 004 asks for a GPU of 24 GB, better 40, for a model of this size; what is measured here counts."),
    Rule("warn.ram", "4.10", lambda f: f.is_large and (f.ram or 32 * GB) < 32 * GB, {},
         "Document 004 asks for 32 GB of RAM, better 64, for a model of this size: decoded images go to disk then."),
    Rule("warn.disk", "4.10", lambda f: f.disk is not None and f.disk < max(f.run_bytes, 20 * GB * f.is_large), {},
         "Little disk is free: document 004 asks for 20 GB, better 50, for a model of its size, and checkpoints with"
         " optimizer states need 9 times the weights."),
    Rule("warn.tiny", "own", lambda f: f.smallest < 10, {},
         "A class has fewer than 10 training images: what is learned of it is learned from single pictures."),
    Rule("warn.no-val", "own", lambda f: f.num_val == 0, {},
         "No val images: the last checkpoint is kept, and nothing says if it is better; --val-ratio divides anew."),
    Rule("warn.val", "own", lambda f: 0 < f.num_val < 200, {},
         "Fewer than 200 val images: differences of some points between checkpoints cannot be told from chance."),
    Rule("warn.negatives", "own", lambda f: f.is_contrastive, {},
         "A contrastive head learns from the whole batch, and --accumulate adds up losses of small ones: where memory"
         " does not suffice the batch is kept, and gradient checkpointing is tried first."),
    Rule("warn.gpus", "4.17", lambda f: f.num_gpus > 1, {},
         "Several GPUs: `torchrun --nproc-per-node N -m warmstart finetune --config FILE` divides every batch among"
         " them."),
    # What to change when it goes wrong.
    Rule("later.gain", "0.30", _always, {},
         "A gain: then `warmstart continue`, or a second round with a rate twice or half as large."),
    Rule("later.worse", "0.24", _always, {},
         "Worse than the start: half the rate, fewer epochs, --freeze backbone."),
    Rule("later.unstable", "4.15", _always, {},
         "The loss jumps: a tenth to a half of the rate, --warmup .2, --clip .5, --layer-decay .95."),
    Rule("later.overfit", "4.16", _always, {},
         "Train and val drift apart: --weight-decay .05, --augment strong, --patience 3, fewer epochs."),
    Rule("later.slow", "4.17", _always, {},
         "Too slow: --precision auto on a GPU, more GPUs, LoRA instead of everything, --limit .1 for a first look."),
)  # fmt: skip

SLOTS = tuple(
    dict.fromkeys(rule.slot for rule in RULES if rule.slot not in ("memory", "try", "warn", "later"))
)  # each of which decides something


def rules_of(slot: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES if rule.slot == slot)
