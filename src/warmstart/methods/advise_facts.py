"""What advice rests on: facts about the data, the model, the machine and the goal. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from warmstart.errors import listing

GOALS = ("best", "balanced", "quick", "edge")
GB = 2**30  # as memory is sold

_FEW, _SOME = 1_000, 10_000  # training images (4.19)
_FEW_FOR_BLOCKS = 5_000  # 0.17, the stricter of its two
_GOOD = 0.9  # accuracy of a start model (0.17)
_LARGE = 50_000_000  # parameters; that of 4.10 has 88 million
_STEPS_PER_EPOCH = 20
_CHECKPOINTS = 3  # two of the newest and the best
_COPIES = 3  # of the weights in a checkpoint: themselves, and two moments


@dataclass(frozen=True)
class Facts:
    """Sizes of images are medians in pixels, memory is in bytes (None: unknown).

    `method` is what the rules have decided so far.
    """

    task: str  # classes, labels (several per image) or masks
    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    smallest: int  # training images of the rarest class
    largest: int
    height: int
    width: int
    num_channels: int
    has_sides: bool  # left and right in the names of classes
    model: str
    family: str  # transformer or convolutional
    num_parameters: int
    weights: str  # random or trained
    head: str  # kept, mixed or new
    num_known: int  # classes of the data that the weights know
    start_accuracy: float | None  # on val, where the head was kept
    original_lr: float | None  # of the training from nothing, where it is recorded
    augment_recorded: bool
    device: str
    device_memory: int | None  # planned, else free
    is_planned: bool
    num_gpus: int
    ram: int | None
    disk: int | None  # free where runs are written
    goal: str
    method: str = ""
    is_contrastive: bool = False  # the head compares the images and texts of a batch

    @property
    def is_transformer(self) -> bool:
        return self.family == "transformer"

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    @property
    def on_gpu(self) -> bool:
        """Whether the run will be on one, which may be planned for on a machine without."""
        return self.device == "cuda" or self.is_planned

    @property
    def has_masks(self) -> bool:
        return self.task == "masks"

    @property
    def imbalance(self) -> float:
        """Images of the largest class for one of the smallest."""
        return self.largest / max(1, self.smallest)

    @property
    def is_few(self) -> bool:
        return self.num_train < _FEW

    @property
    def is_some(self) -> bool:
        return self.num_train <= _SOME

    @property
    def is_few_for_blocks(self) -> bool:
        return self.num_train < _FEW_FOR_BLOCKS

    @property
    def is_good(self) -> bool:
        """Whether the start model solves the task already."""
        return self.start_accuracy is not None and self.start_accuracy > _GOOD

    @property
    def wants_best(self) -> bool:
        return self.goal == "best"

    @property
    def wants_cheap(self) -> bool:
        return self.goal in ("quick", "edge")

    @property
    def has_adapters(self) -> bool:
        return self.method in ("lora", "qlora")

    @property
    def trains_all(self) -> bool:
        return self.method in ("full", "layer-wise")

    @property
    def takes_long(self) -> bool:
        return self.wants_best and not self.has_adapters

    @property
    def is_large(self) -> bool:
        """Whether the hardware that document 004 asks for is asked for a model like this."""
        return self.num_parameters >= _LARGE

    @property
    def full_method(self) -> str:
        """Tuning everything: a transformer's lower blocks slower (4.08)."""
        return "layer-wise" if self.is_transformer else "full"

    @property
    def recorded_rate(self) -> float:
        """0.16 and 1.04 in one: .04 gives 8e-4 (/50), 1e-4 gives 5e-5 (/2)."""
        assert self.original_lr is not None, "the rule applies only where it is recorded"
        return min(self.original_lr / 2, 1e-3, max(self.original_lr / 50, 5e-5))

    def batch(self, most: int) -> int:
        """Images per optimizer step: `most`, halved until an epoch has 20 steps; at least 8."""
        size = most
        while size > 8 and self.num_train < _STEPS_PER_EPOCH * size:
            size //= 2
        return size

    @property
    def run_bytes(self) -> int:
        """What a run's checkpoints take at most."""
        return _CHECKPOINTS * _COPIES * 4 * self.num_parameters

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: data, model, machine, goal."""
        sizes = ", ".join(
            f"{number:,} {name}"
            for name, number in (("train", self.num_train), ("val", self.num_val), ("test", self.num_test))
            if number
        )
        what = {"classes": "classes", "labels": "labels", "masks": "classes of pixels"}[self.task]
        notes = [f"knows {self.num_known} of {self.num_classes} classes, head {self.head}"]
        if self.start_accuracy is not None:
            notes.append(f"val accuracy {self.start_accuracy:.3f} before any training")
        if self.original_lr is not None:
            notes.append(f"first trained with rate {self.original_lr:g}")
        return [
            f"data: {sizes}; {self.num_classes} {what}, {self.smallest:,} to {self.largest:,} training images each; "
            f"{self.height}x{self.width} px, {self.num_channels} channels",
            f"model: {self.model}, {self.family}, {self.num_parameters:,} parameters, {self.weights} weights; "
            + listing(notes),
            f"machine: {self._machine()}",
            f"goal: {self.goal}",
        ]

    def _machine(self) -> str:
        memory = "memory unknown" if self.device_memory is None else f"{self.device_memory / GB:.1f} GB"
        memory += " planned for" if self.is_planned else "" if self.device_memory is None else " free"
        more = [f"{self.num_gpus} GPUs"] if self.num_gpus > 1 else []
        more += [f"RAM {self.ram / GB:.0f} GB"] if self.ram is not None else []
        more += [f"{self.disk / GB:.0f} GB of disk free"] if self.disk is not None else []
        return ", ".join([f"{self.device}, {memory}", *more])
