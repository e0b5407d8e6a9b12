"""Other data sets in the same training: `--mix PATH=SHARE[:UNTIL],...`, and what their classes are called here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from warmstart.config.values import parse_duration, parse_pairs

UNION: Literal["union"] = "union"


@dataclass(frozen=True)
class Share:
    """The share of an epoch's places that a data set has, up to the epoch `until` (None: to the end)."""

    path: str
    amount: float
    until: int | None = None

    def __str__(self) -> str:
        return f"{self.path}={self.amount!r}" + ("" if self.until is None else f":{self.until}epochs")


def share_at(shares: tuple[Share, ...], epoch: int) -> float:
    """The share that holds in an epoch, of one data set's in their order; 0 after the last limit."""
    return next((share.amount for share in shares if share.until is None or epoch < share.until), 0.0)


def by_path(shares: tuple[Share, ...]) -> dict[str, tuple[Share, ...]]:
    """Path -> its shares, in the order in which the paths are named."""
    return {
        path: tuple(share for share in shares if share.path == path)
        for path in dict.fromkeys(s.path for s in shares)
    }


def parse_mix(value: Any) -> tuple[Share, ...]:
    """`A=.3,B=.2`, `A=.8:5epochs,A=.2`, a list of such words, or a mapping of paths to shares."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "")):
        return ()
    if isinstance(value, str):
        words: list[Any] = value.split(",")
    elif isinstance(value, dict):
        words = [f"{path}={share}" for path, share in value.items()]
    else:
        words = [*value] if isinstance(value, (list, tuple)) else [value]
    shares = tuple(word if isinstance(word, Share) else _share(str(word)) for word in words)
    for path, own in by_path(shares).items():
        limits = [share.until for share in own]
        known = [limit for limit in limits if limit is not None]
        if None in limits[:-1] or known != sorted(set(known)):
            raise ValueError(
                f"{','.join(map(str, own))!r}: every share of {path} but the last needs a limit, and limits rise; "
                f"write {path}=.8:5epochs,{path}=.2"
            )
    return shares


def _share(word: str) -> Share:
    path, equals, rest = word.strip().rpartition("=")
    amount, colon, until = rest.partition(":")
    try:
        number = float(amount)
    except ValueError:
        equals = ""
    if not (equals and path):
        raise ValueError(f"{word!r} is not of the form PATH=SHARE or PATH=SHARE:5epochs")
    if not 0 <= number <= 1:
        raise ValueError(f"{word!r}: a share is between 0 and 1")
    limit = parse_duration(until) if colon else None
    if colon and (limit is None or limit.unit != "epochs" or limit.amount != int(limit.amount)):
        raise ValueError(f"{word!r}: the limit of a share is in whole epochs, such as :5epochs")
    return Share(path, number, None if limit is None else int(limit.amount))


MixClassesValue = Literal["union"] | tuple[tuple[str, str], ...]


def parse_mix_classes(value: Any) -> MixClassesValue:
    """`union`, or `theirs=ours,...`."""
    if isinstance(value, str) and value.strip().lower() == UNION:
        return UNION
    pairs = parse_pairs(value, "=", "their_class=our_class")
    named = [str(theirs) for theirs, _ in pairs]
    if len(set(named)) != len(named):
        raise ValueError(f"{value!r} names a class twice")
    return tuple((str(theirs), str(ours)) for theirs, ours in pairs)


def _written(value: MixClassesValue) -> str | None:
    return value if isinstance(value, str) else ",".join(f"{a}={b}" for a, b in value) or None


Mix = Annotated[tuple[Share, ...], BeforeValidator(parse_mix), PlainSerializer(lambda v: [str(s) for s in v])]
MixClasses = Annotated[MixClassesValue, BeforeValidator(parse_mix_classes), PlainSerializer(_written)]


def moved(shares: tuple[Share, ...], places: dict[str, str]) -> tuple[Share, ...]:
    """The same shares of the same data sets at other `places` (path -> path)."""
    return tuple(replace(share, path=places.get(share.path, share.path)) for share in shares)
