"""The verb that does a recorded run again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmstart import console

if TYPE_CHECKING:
    from warmstart.verify.reproduce import Reproduction


def reproduce(
    run: str,
    *,
    steps: int | None = None,
    data: str | None = None,
    weights: str | None = None,
    device: str | None = None,
    output_dir: str | None = None,
) -> Reproduction:
    """Do a recorded run again in a process of its own, and compare every number: to the bit, or what differs first.

    With `steps` up to this step of the same schedule. `data` and `weights` say where these lie now, `device` is another
    than then. The new run is temporary, unless `output_dir` names a new folder.

    Raises:
        UserError: a run that is in progress, that trained nothing, or whose data or weights are gone or others.
    """
    console.setup()
    from warmstart.verify.again import Moved
    from warmstart.verify.reproduce import reproduce as do_again

    return do_again(run, steps, output_dir, Moved(data, weights, device))
