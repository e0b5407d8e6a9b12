"""What `--weights` and the model argument of evaluate and predict may name: a file, a run, or RUN@step."""

from __future__ import annotations

from dataclasses import dataclass

from warmstart.run import layout, reader
from warmstart.run.reader import Run


@dataclass(frozen=True)
class WeightsReference:
    """The file to read, and the run and step it belongs to where it is one of ours."""

    file: str | None
    run: Run | None = None
    step: int | None = None


def resolve_weights(reference: str | None) -> WeightsReference:
    """What a reference names: one of our runs at a step (default: the best), or a file as it is.

    Raises:
        UserError: a run without the step named, or with a damaged checkpoint.
    """
    if reference is None or reference == "none":
        return WeightsReference(None)
    path, _ = reader.split_reference(reference)
    if layout.is_run(path):
        run, step, file = reader.model_file(reference)
        return WeightsReference(str(file), run, step)
    return WeightsReference(reference)
