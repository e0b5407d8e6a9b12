"""Whether a run that continues another one has its images: by what both recorded."""

from __future__ import annotations

import json
from typing import Any

from warmstart.config.io import from_dict
from warmstart.config.mix_rules import at_places, trained_paths
from warmstart.config.places import absolute
from warmstart.config.schema import Config
from warmstart.engine.prepare import Prepared
from warmstart.run.reader import Run


def is_same_split(old: dict[str, Any], new: dict[str, Any], split: str) -> bool:
    """Whether the images of a split of --data are the same; both are the content of resolved.json."""
    return bool(_images_of(old["data"], split) == _images_of(new["data"], split))


def trains_on_same(run: Run, prepared: Prepared) -> bool:
    """Whether the training images are the same, also those of other data sets that are mixed in."""
    parents = at_places(from_dict(run.config), run.source_places)
    old, new = run.resolved, prepared.resolved
    is_same = is_same_split(old, new, "train")
    return is_same and _mixed_in(parents, old) == _mixed_in(prepared.job.config, new)


def _mixed_in(config: Config, resolved: dict[str, Any]) -> list[Any]:
    sources = {source["path"]: source for source in resolved.get("sources", ())}
    return [(place, _images_of(sources[place], "train")) for place in map(absolute, trained_paths(config))]


def _images_of(data: dict[str, Any], split: str) -> Any:
    """The files' fingerprint, and by what they were divided."""
    divided = {name: value for name, value in data["split"].items() if name != "known"}
    found = data["fingerprint"], divided, data["sizes"].get(split), data["quarantined"]
    return json.loads(json.dumps(found))
