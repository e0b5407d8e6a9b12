"""The verb that looks into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, labelled_data, restore_model
from warmstart.errors import UserError

if TYPE_CHECKING:
    from warmstart.analysis.explain.result import Explanation

_OWN = ("method", "class_name", "layer", "num", "limit", "start", "projection")


def explain(
    model: str,
    images: list[str] | None = None,
    *,
    data: Data | None = None,
    split: str | None = None,
    output: str | None = None,
    device: str = "auto",
    **settings: Any,
) -> Explanation:
    """Look into a run, RUN@step or a file of weights: a page with what it looked at in some images, and more.

    `images` are files and folders; without them a split of the run's own data, or of `data`: some images that are right
    and the surest mistakes. `output` is a new folder, by default one inside the run. `settings`: method (grad-cam,
    rollout, filters, activations, embedding, cka; by default all that apply), class_name (explain this class only),
    layer (the path of that whose maps are drawn), num (images to look at, 12), limit (images of the embedding map,
    1000), start (what cka compares with), projection (pca, tsne, umap), workers, task, how labels are read, and what
    files do not say themselves, as in `evaluate`.

    Raises:
        UserError: an unknown method, class or layer, no image of the class, a method that does not apply to the model.
    """
    console.setup()
    from warmstart.analysis.explain.explain import explain as look_inside
    from warmstart.analysis.explain.result import Request

    given = {name: value for name in _OWN if (value := settings.pop(name, None)) is not None}
    words: dict[str, Any] = {
        name: given[name] for name in ("layer", "num", "limit", "start") if name in given
    }
    lists = {"methods": "method", "projections": "projection"}
    words |= {name: _names(given[flag]) for name, flag in lists.items() if flag in given}
    request = Request(images=tuple(images or ()), only=given.get("class_name"), output=output, **words)
    request.check()
    labelled = labelled_data(data, settings)
    restored, workers = restore_model(model, device, settings, merged=True)
    return look_inside(restored, request, None if data is None else labelled, split, workers)


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else tuple(value)
    if "" in names:
        raise UserError(f"an empty name in {value!r}", "names with commas between them")
    return names
