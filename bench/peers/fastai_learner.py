"""fastai.Learner: its own readers and transforms, with the crop, flip, rate and schedule of the other sides."""

import torch
from common import DECAY, SCALE, Clock, arguments, build_model, normalisation, report
from fastai.vision.all import (
    Callback,
    Flip,
    ImageDataLoaders,
    Learner,
    Normalize,
    ParamScheduler,
    RandomResizedCrop,
    SchedCos,
    accuracy,
)


class Marks(Callback):
    def after_epoch(self) -> None:
        clock.epoch()


def frozen_first(model: torch.nn.Module) -> list[list]:
    """fastai freezes all groups of parameters but the last."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [frozen, trained] if frozen else [trained]


args = arguments()
if args.device != "cpu":
    torch.cuda.set_device(torch.device(args.device).index or 0)
images = ImageDataLoaders.from_folder(
    args.data,
    train="train",
    valid="val",
    item_tfms=RandomResizedCrop(args.px, min_scale=SCALE[0]),
    batch_tfms=[Flip(), Normalize.from_stats(*normalisation(args))],
    bs=args.batch,
    num_workers=args.workers,
    device=torch.device(args.device),
)
model = build_model(args, images.c)
# train_bn: otherwise the norms of frozen layers are trained, through the whole network.
learner = Learner(images, model, metrics=accuracy, splitter=frozen_first, wd=DECAY, train_bn=False)
if args.mode != "full":
    learner.freeze()
clock = Clock()
with learner.no_bar(), learner.no_logging():
    learner.fit(args.epochs, args.lr, cbs=[Marks(), ParamScheduler({"lr": SchedCos(args.lr, 0)})])
clock.stop()
report(args, model, clock, len(images.train) * args.batch)
