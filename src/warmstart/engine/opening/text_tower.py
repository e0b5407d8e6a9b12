"""The text tower of an image-text model in a run: what is said of it, and what is kept of it for later."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.adapt.patterns import TEXT_TOWER
from warmstart.adapt.plan import Row
from warmstart.config.schema import Config
from warmstart.engine.job import Job
from warmstart.models.build import BuiltModel
from warmstart.run import layout, writer

_FROZEN = "frozen"


def text_remarks(config: Config, built: BuiltModel, rows: Sequence[Row]) -> tuple[str, ...]:
    """What should be said of the text tower, of which these are rows of the plan."""
    text = built.text
    if text is None:
        return ()
    if text.dropped is not None:
        return (text.dropped,)
    state = _state(rows)
    if state == _FROZEN and config.text.captions is None:
        state += ", and runs once for all batches"
    texts = "class prompts" if config.text.captions is None else f"captions ({config.text.captions})"
    beside = " (--accumulate adds up losses of batches, not larger ones)" * (config.optim.accumulate > 1)
    return (
        f"the text tower is {state}; answers are by {text.by_text}",
        f"the loss compares the images of a batch of {config.data.batch_size} with each other's {texts}{beside}",
    )


def _state(rows: Sequence[Row]) -> str:
    """What becomes of the tower, by its rows."""
    tower = [row for row in rows if row.name.startswith(TEXT_TOWER)]
    trained = [row for row in tower if row.mode != "frozen"]
    if not trained:
        return _FROZEN
    how = "trained" if all(row.mode == "full" for row in trained) else "frozen but for its adapters"
    where = "" if len(trained) == len(tower) else f" (in {len(trained)} of {len(tower)} blocks)"
    return how + where + ", at first frozen" * (min(row.from_stage for row in trained) > 0)


def keep_processor(job: Job) -> None:
    """Write the tokenizer and the image processor into the run, so that it needs their folder no more."""
    files = {} if job.built.text is None else job.built.text.processor
    if files and job.world.is_main:
        (job.run / layout.PROCESSOR).mkdir(exist_ok=True)
    for name, content in files.items():
        writer.write_whole(job.run / layout.PROCESSOR / name, content)
