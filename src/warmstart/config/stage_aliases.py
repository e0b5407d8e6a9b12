"""Document 001's flags that say together what one of ours says: of progressive unfreezing, and of class weights."""

from __future__ import annotations

from collections.abc import Mapping

FREEZE, EPOCH, RATIO = "freeze-backbone", "unfreeze-backbone-epoch", "unfreeze-backbone-ratio"
RATE_2, RATE_3, THRESHOLD = "stage2-lr", "stage3-lr", "unfreeze-all-f1-threshold"
WEIGHTS = {"pos-weight": "positive", "neg-class-weight": "negative"}
SWITCHES = (FREEZE, "unfreeze-all-after-resume")
# That program's F1 is of its positive class; ours called f1 is the mean over the classes.
_F1 = "f1_positive"
# Flag -> why it does nothing here.
DEAD = {
    "tb-port": "no server is started; `tensorboard --logdir RUNS` shows all runs",
    "unfreeze-all-after-resume": "--unfreeze says when everything trains, and a resume goes on in its stage",
}
# Flag -> why it is refused, and what to do instead.
REFUSED = {
    "pretrained-backbone": (
        "refused: the document's models have no published backbone of their own",
        "--weights FILE starts from a file, --model timm:NAME from the weights of a zoo",
    ),
    "pretrained-weights-dir": (
        "refused: a folder of weights is named where it is read",
        "--weights FOLDER takes the best of its files; a zoo's weights lie in the caches of torch and Hugging Face",
    ),
}
# Flag -> what it stands for by itself, with VALUE where its value goes; those of unfreezing need FREEZE.
ALONE = {
    FREEZE: ["--freeze", "backbone"],
    EPOCH: ["--unfreeze", "0:head,VALUE:backbone>0.5"],
    RATIO: ["--unfreeze", "0:head,EPOCH:backbone>VALUE"],
    RATE_2: ["--unfreeze", "0:head,EPOCH:backbone>0.5@VALUE"],
    THRESHOLD: ["--unfreeze", f"0:head,{_F1}>=VALUE:all"],
    RATE_3: ["--unfreeze", f"0:head,{_F1}>=THRESHOLD:all@VALUE"],
    **{flag: ["--class-weights", f"{side}=VALUE"] for flag, side in WEIGHTS.items()},
}


def joined(given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The tokens in force of all flags of ALONE that were given, and flag -> why it does nothing here."""
    sides = [f"{side}={given[flag]}" for flag, side in WEIGHTS.items() if flag in given]
    rest = {flag: value for flag, value in given.items() if flag not in WEIGHTS}
    tokens, dead = stages(rest) if rest else ([], {})
    return tokens + (["--class-weights", ",".join(sides)] if sides else []), dead


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
        entries.append(f"{_F1}>={given[THRESHOLD]}:all{_at(given.get(RATE_3))}")
    else:
        why = f"all trains already from --{EPOCH}" if THRESHOLD in given else f"without --{THRESHOLD}"
        dead |= {name: why for name in (THRESHOLD, RATE_3) if name in given}
    tokens = ["--unfreeze", ",".join(["0:head", *entries])] if entries else ALONE[FREEZE]
    return tokens, dead


def _at(rate: str | None) -> str:
    """The document's own default of --lr x .05 is not taken over: what is not written does not happen."""
    return "" if rate is None else f"@{rate}"
