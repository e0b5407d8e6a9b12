"""The verbs that make a run out of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.config.values import parse_floats
from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.methods.blended_run import BlendResult
    from warmstart.methods.merge import Merged


def blend(
    models: list[str], *, output_dir: str | None = None, device: str = "auto", **settings: Any
) -> BlendResult:
    """Interpolate between a start and the run tuned from it, or average a run's last checkpoints, into a new run.

    `models`: START and TUNED, or TUNED alone, whose own start is taken. `settings`: alphas (shares of TUNED to measure,
    0,.1,...,1 by default); last (average so many of TUNED's checkpoints instead); retain (data that should not be
    forgotten); choose: best (on TUNED's val), mean (of that and the retained data), or gain=.8 (the smallest alpha that
    keeps this share of the gain); bn: keep, or estimate (BatchNorm's statistics anew from the training images);
    workers.

    Raises:
        UserError: models that cannot be blended, no val split, an unknown rule or setting.
    """
    console.setup()
    from warmstart.inference.device import resolve_device
    from warmstart.methods.blend import blend as measure
    from warmstart.methods.blended_run import write_blend
    from warmstart.methods.candidates import Request

    given = {name: value for name, value in settings.items() if value is not None}
    unknown = set(given) - {"alphas", "choose", "last", "retain", "bn", "workers"}
    if unknown:
        raise UserError(
            f"unknown setting {sorted(unknown)[0]!r}",
            "alphas, choose, last, retain, bn, workers, output_dir, device",
        )
    if "alphas" in given:
        if "last" in given:
            raise UserError("--alphas beside --last: an average has equal weights", "one of the two")
        try:
            given["alphas"] = parse_floats(given["alphas"])
        except ValueError as error:
            raise UserError(f"--alphas: {error}", "shares such as 0,.25,.5,.75,1") from None
    request = Request(tuple(models), **given)
    return write_blend(measure(request, resolve_device(device)), output_dir, request.workers)


def merge(
    model: str,
    *,
    base: str | None = None,
    to: str | None = None,
    force: bool = False,
    bits: int | None = None,
    device: str = "auto",
) -> Merged:
    """Merge the low-rank adapters of a run, RUN@step or adapter folder into the weights: a plain file, checked.

    `base` is the model that an adapter folder is put on (a file, a run, or a zoo's name), where that is not the one it
    names; `force` takes one whose tensors are others than those it was trained on. `to` is the file to write,
    MODEL-merged.safetensors by default; with `bits=4` the merged weights are stored in 4 bits.

    Raises:
        UserError: nothing to merge, another base, or a file that is there already.
    """
    console.setup()
    from warmstart.inference.device import resolve_device
    from warmstart.methods.merge import MergeRequest
    from warmstart.methods.merge import merge as write_merged

    return write_merged(MergeRequest(model, base, to, force, bits), resolve_device(device))
