"""The text tower of an image-text model in a run: what is said of it, and what is kept of it for later."""

from __future__ import annotations

from warmstart.config.schema import Config
from warmstart.engine.job import Job
from warmstart.models.build import BuiltModel
from warmstart.run import layout, writer


def text_remarks(config: Config, built: BuiltModel) -> tuple[str, ...]:
    """What the plan should say of the text tower."""
    text = built.text
    if text is None:
        return ()
    if text.dropped is not None:
        return (text.dropped,)
    state = "trained where its rows say so"
    if config.text.tower == "frozen":
        state = "frozen, and runs once for all batches"
    texts = "class prompts" if config.text.captions is None else f"captions ({config.text.captions})"
    beside = " (--accumulate adds up losses of batches, not larger ones)" * (config.optim.accumulate > 1)
    return (
        f"the text tower is {state}; answers are by {text.by_text}",
        f"the loss compares the images of a batch of {config.data.batch_size} with each other's {texts}{beside}",
    )


def keep_processor(job: Job) -> None:
    """Write the tokenizer and the image processor into the run, so that it needs their folder no more."""
    files = {} if job.built.text is None else job.built.text.processor
    if files and job.world.is_main:
        (job.run / layout.PROCESSOR).mkdir(exist_ok=True)
    for name, content in files.items():
        writer.write_whole(job.run / layout.PROCESSOR / name, content)
