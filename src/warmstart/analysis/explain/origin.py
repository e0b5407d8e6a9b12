"""The model that a tuned one is compared with: what its run was started from."""

from __future__ import annotations

import torch

from warmstart.analysis.explain.similarity import BlockFeatures, Similarity, compare
from warmstart.analysis.explain.subject import Subject
from warmstart.config.schema import ModelConfig
from warmstart.errors import UserError
from warmstart.inference.reference import own_start
from warmstart.inference.restore import Restored, restore, restore_by_texts_of
from warmstart.models.build import BuiltModel, build

_NUM_IMAGES = 256  # what two models are compared on
_ZOOS = ("timm:", "torchvision:", "smp:", "hf:")


def compared_with_start(subject: Subject, name: str | None) -> tuple[str, Similarity]:
    """The start's name, and its blocks beside those of the tuned model, on the same images in the tuned preprocessing.

    `name` is a run, RUN@step, a file, or a zoo's name (its pretrained weights); by default the step that the run began
    with where that is kept, else what it was started from.

    Raises:
        UserError: no start is known, or one of another architecture.
    """
    tuned, device = subject.restored, subject.device
    label, start = _restore_start(tuned, name, device)
    start.module.eval()
    names = {block.name for block in start.blocks[:-1]} & {block.name for block in tuned.built.blocks[:-1]}
    if not names:
        raise UserError(
            f"{label} is a {start.name}, and {tuned.label} a {tuned.built.name}: no block of one is in the other",
            "two models of one architecture",
            "--start MODEL names the right one",
        )
    before, after, inputs = BlockFeatures(start), BlockFeatures(tuned.built), subject.inputs()
    for batch in subject.first(_NUM_IMAGES):
        images = inputs(batch.images)
        before.add(images)
        after.add(images)
    return label, compare(before, after, (start, tuned.built))


def _restore_start(tuned: Restored, name: str | None, device: torch.device) -> tuple[str, BuiltModel]:
    run = tuned.reference.run
    task = None if run is None else run.task
    if name is None and run is None:
        raise UserError(
            f"cka: {tuned.label} is a file, and says not what it was tuned from", "a run", "--start MODEL"
        )
    if name is None:
        assert run is not None
        first = run.resolved["pace"].get("first_step", 0)
        source, zoo = run.resolved["model"]["source"], str(run.resolved["model"]["name"])
        if first in run.checkpoint_steps():
            name = f"{run.path}@{first}"
        elif source["kind"] == "pretrained" and zoo.startswith(_ZOOS) and run.resolved["parent"] is None:
            name = zoo
        else:
            name, task = own_start(run), None
    else:
        task = None
    sides = {"image_size": tuned.built.preprocessing.image_size}
    if name.startswith("hf:") and tuned.built.text is not None and tuned.built.text.prompts:
        return name, restore_by_texts_of(tuned, name, device).built
    if name.startswith(_ZOOS):
        made = build(ModelConfig(name=name), sides, tuned.built.classes, 0)
        made.move_to(device)
        return name, made
    # A file that says nothing of itself is of the tuned model's architecture, or is refused.
    return name, restore(name, device, tuned.built.name, sides, merged=True, task=task).built
