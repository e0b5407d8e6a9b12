"""YAML as run directories hold it, read fast: a hundred of config.yaml have the same few hundred words."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import yaml

# libyaml's, where PyYAML was built with it: a tenth of the time.
_SAFE: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE):  # type: ignore[misc, valid-type]
    """What a plain word means (text, number, null) is looked up once; by regular expressions it is half of the time."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _tag_of(value)
        return super().resolve(kind, value, implicit)


@lru_cache(maxsize=4096)
def _tag_of(word: str) -> str:
    tag: str = _SAFE("").resolve(yaml.ScalarNode, word, (True, False))
    return tag


def parsed(text: str) -> Any:
    """As `yaml.safe_load`, which it equals.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
