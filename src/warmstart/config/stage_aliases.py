"""Document 001's flags of progressive unfreezing: six of them say together what --unfreeze says in one."""

from __future__ import annotations

from collections.abc import Mapping

FREEZE, EPOCH, RATIO = "freeze-backbone", "unfreeze-backbone-epoch", "unfreeze-backbone-ratio"
RATE_2, RATE_3, THRESHOLD = "stage2-lr", "stage3-lr", "unfreeze-all-f1-threshold"
# Flag -> what it stands for by itself, with VALUE where its value goes; each needs FREEZE.
ALONE = {
    FREEZE: ["--freeze", "backbone"],
    EPOCH: ["--unfreeze", "0:head,VALUE:backbone>0.5"],
    RATIO: ["--unfreeze", "0:head,EPOCH:backbone>VALUE"],
    RATE_2: ["--unfreeze", "0:head,EPOCH:backbone>0.5@VALUE"],
    THRESHOLD: ["--unfreeze", "0:head,f1>=VALUE:all"],
    RATE_3: ["--unfreeze", "0:head,f1>=THRESHOLD:all@VALUE"],
}


def stages(given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The tokens in force, and flag -> why it does nothing here."""
    if FREEZE not in given:
        return [], dict.fromkeys(given, "without --freeze_backbone nothing is frozen")
    dead: dict[str, str] = {}
    entries = []
    ratio = given.get(RATIO, "0.5")
    is_whole = ratio.strip() in ("1", "1.0", "1.")
    if EPOCH in given:
        blocks = "all" if is_whole else f"backbone>{ratio if '.' in ratio else ratio + '.0'}"
        entries.append(f"{given[EPOCH]}:{blocks}{_at(given.get(RATE_2))}")
    else:
        dead |= {name: f"without --{EPOCH}" for name in (RATIO, RATE_2) if name in given}
    if THRESHOLD in given and not (is_whole and EPOCH in given):
        entries.append(f"f1>={given[THRESHOLD]}:all{_at(given.get(RATE_3))}")
    else:
        why = f"all trains already from --{EPOCH}" if THRESHOLD in given else f"without --{THRESHOLD}"
        dead |= {name: why for name in (THRESHOLD, RATE_3) if name in given}
    tokens = ["--unfreeze", ",".join(["0:head", *entries])] if entries else ALONE[FREEZE]
    return tokens, dead


def _at(rate: str | None) -> str:
    """The document's own default of --lr x .05 is not taken over: what is not written does not happen."""
    return "" if rate is None else f"@{rate}"
