"""Several checkpoints -> the best: by manifests, by the metric in their names, or by being called best. No torch.

Never by age: where nothing tells which is best, nothing is chosen.
"""

from __future__ import annotations

import csv
import errno
import glob
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.console import log
from warmstart.errors import UserError, listing

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
_INDEX = ".index.json"
# What trainers save beside the weights.
_NOT_WEIGHTS = re.compile(
    r"^(optimizer|scheduler|scaler|rng_state\w*|training_args|training_state|random_states\w*)\."
)
# A number that belongs to the metric's name has a separator behind it: acc1_92.3, mAP50-95_0.41.
_MORE = (
    r"acc@?[15](?=[-_=:@ ])|map50-95(?=[-_=:@ ])|map50(?=[-_=:@ ])(?!-95)|acc(?:uracy)?|top[-_]?1|prec[-_]?1|"
    r"f1|f_score|m?iou|auc|auroc|m?ap|dice|kappa|recall|precision|score|metric"
)
_LESS = r"loss|err(?:or)?|nll|rmse|mae|mse|ece|ppl|perplexity"
_NAMED = re.compile(
    rf"(?:^|[^a-z0-9])((?:val(?:id(?:ation)?)?|test|eval|train|dev|best)?[_/@-]?(?:{_MORE}|{_LESS}))"
    r"[-_=:@ ]?(\d+\.\d+|\.\d+|\d+(?![\d.]))(?!\d)",
    re.IGNORECASE,
)
# A share with two decimals or more; `v0.12` and `lr_0.001` are none.
_BARE = re.compile(r"(?<!epoch)(?<!step)(?<!lr)(?<!version)(?<!decay)[-_=](0?\.\d{2,}|1\.0+)$")
_FOLDER = re.compile(r"^(checkpoint|ckpt|epoch|step|global_step)[-_=]?", re.IGNORECASE)
_NUM_EXAMPLES = 6


@dataclass(frozen=True)
class Score:
    """A metric that somebody wrote down for a checkpoint."""

    metric: str
    value: float
    less_is_better: bool
    where: str  # it is written

    @property
    def merit(self) -> float:
        return -self.value if self.less_is_better else self.value


@dataclass(frozen=True)
class Choice:
    """`notes` say which was taken and why."""

    path: Path
    notes: tuple[str, ...] = ()


def check_path(path: Path) -> None:
    """UserError where no file can have this name: Python's own tests of paths raise OSError there."""
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{path} is no path: {error.strerror}", "a file, a folder or a glob", "name a file"
            ) from None
    except ValueError as error:  # a null byte
        raise UserError(
            f"{str(path)!r} is no path: {error}", "a file, a folder or a glob", "name a file"
        ) from None


def is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def matches(pattern: str) -> list[Path]:
    """Paths that a glob matches, in the order of their names."""
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)  # noqa: PTH207 (absolute patterns)
    return sorted(map(Path, found))


def is_weights(path: Path) -> bool:
    """Whether the name is one of weights: a file of tensors or the index of a sharded one."""
    return path.name.endswith((*SUFFIXES, f".safetensors{_INDEX}")) and not _NOT_WEIGHTS.match(path.name)


def head_beside(file: Path) -> Path | None:
    """classifier.pt, which document 004's program saves beside what `save_pretrained` writes, if it is there."""
    head = file.with_name("classifier.pt")
    is_pair = file.name == "model.safetensors" and head.is_file() and file.with_name("config.json").is_file()
    return head if is_pair else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Files of weights, and subfolders such as `checkpoint-500` that hold some. A sharded model is its index."""
    entries = sorted(folder.iterdir())
    files = [p for p in entries if p.is_file() and is_weights(p)]
    if indices := [p for p in files if p.name.endswith(_INDEX)]:
        files = indices
    files = [p for p in files if not any(head_beside(other) == p for other in files)]
    folders = [p for p in entries if p.is_dir() and _FOLDER.match(p.name)]
    return files + [p for p in folders if any(q.is_file() and is_weights(q) for q in p.iterdir())]


def choose(paths: Iterable[Path], where: str, known: Mapping[Path, Score] | None = None) -> Choice:
    """The best of several checkpoints; warns if another is newer. `known` are scores looked up elsewhere.

    UserError: two have the same best score, or nothing tells which is best.
    """
    candidates = list(paths)
    if len(candidates) == 1:
        return Choice(candidates[0])
    found = _by_trainer(candidates) or _by_score(candidates, where, known or {}) or _by_name(candidates)
    if found is None:
        raise UserError(
            f"{where} holds {len(candidates)} files of weights: "
            f"{listing((p.name for p in sorted(candidates)), _NUM_EXAMPLES)}; nothing tells which is the best",
            "one file, or names that hold a metric (epoch=12-val_acc=0.91.ckpt, best_model.pth)",
            f"--weights {sorted(candidates)[0]}",
        )
    best, why = found
    newest = max(candidates, key=_changed)
    newer = newest if _changed(newest) > _changed(best) else None
    if newer is not None:
        log.warning(
            "%s is newer than %s, which was taken as the best: %s",
            _short(newer, candidates),
            _short(best, candidates),
            why,
        )
    note = f"took {_short(best, candidates)}, the best of {len(candidates)} in {where}: {why}"
    return Choice(best, (note,))


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _short(path: Path, among: list[Path]) -> str:
    """The name, with its folder where several share it."""
    is_shared = sum(other.name == path.name for other in among) > 1
    return f"{path.parent.name}/{path.name}" if is_shared else path.name


def _by_trainer(candidates: list[Path]) -> tuple[Path, str] | None:
    """trainer_state.json of Hugging Face, in the folder or in its newest checkpoint, names the best one."""
    folders = {p.parent for p in candidates} | {p for p in candidates if p.is_dir()}
    states = [folder / "trainer_state.json" for folder in sorted(folders)]
    read = [(_json(path), path) for path in states if path.is_file()]
    if not read:
        return None
    state, path = max(read, key=lambda pair: pair[0].get("global_step") or 0)
    named = re.split(r"[\\/]", str(state.get("best_model_checkpoint") or ""))[-1]
    best = next((p for p in candidates if named and p.name == named), None)
    if best is None:
        return None
    metric = state.get("best_metric")
    return best, f"{path.name} names it as best{f' ({metric:g})' if isinstance(metric, (int, float)) else ''}"


def _by_score(candidates: list[Path], where: str, known: Mapping[Path, Score]) -> tuple[Path, str] | None:
    scores = {path: score for path in candidates if (score := known.get(path) or _summary_score(path))}
    if not scores:
        scores = _scores_in_names(candidates)
    metrics = sorted({score.metric for score in scores.values()})
    if len(metrics) > 1:
        raise UserError(
            f"the checkpoints in {where} name different metrics: {listing(metrics)}",
            "one metric to compare them by",
            f"--weights {sorted(candidates)[0]}",
        )
    if not scores or (len(scores) == 1 and _by_name(candidates) is not None):
        return None
    ranked = sorted(scores, key=lambda path: (-scores[path].merit, path.name))
    best = scores[ranked[0]]
    if len(ranked) > 1 and scores[ranked[1]].merit == best.merit:
        raise UserError(
            f"two checkpoints in {where} have the same best {best.metric} {best.value:g}: "
            f"{_short(ranked[0], ranked)} and {_short(ranked[1], ranked)}",
            "one that is the best",
            f"--weights {ranked[0]} or --weights {ranked[1]}",
        )
    order = "less is better" if best.less_is_better else "more is better"
    return ranked[0], f"{best.metric} {best.value:g} in {best.where} ({order})"


def _scores_in_names(candidates: list[Path]) -> dict[Path, Score]:
    """One metric for all: that which most names hold, validation before training, scores before losses."""
    every = {path: _named_scores(path) for path in candidates}
    counts: dict[str, int] = {}
    for scores in every.values():
        for metric in scores:
            counts[metric] = counts.get(metric, 0) + 1
    if not counts:
        return {}
    is_less = {metric: score.less_is_better for scores in every.values() for metric, score in scores.items()}
    best = min(counts, key=lambda m: (-counts[m], m.startswith("train"), is_less[m], m))
    chosen = {path: scores[best] for path, scores in every.items() if best in scores}
    others = {
        path: next(iter(scores.values())) for path, scores in every.items() if scores and path not in chosen
    }
    return chosen | others  # two metrics are refused by whoever compares them


def _named_scores(path: Path) -> dict[str, Score]:
    stem = _stem(path.name)
    found = {}
    for match in _NAMED.finditer(stem):
        metric = match[1].lower().strip("_/@-")
        found[metric] = Score(metric, float(match[2]), re.search(_LESS, metric) is not None, "its name")
    if not found and (bare := _BARE.search(re.sub(r"-v\d+$", "", stem))):
        found["score"] = Score("score", float(bare[1]), False, "the number at the end of its name")
    return found


def _summary_score(path: Path) -> Score | None:
    """The row that timm's summary.csv, beside checkpoint-N.pth.tar, has for epoch N."""
    epoch, table = re.search(r"checkpoint-(\d+)\.pth", path.name), path.parent / "summary.csv"
    if epoch is None or not table.is_file():
        return None
    for row in _rows(table):
        if row.get("epoch") == epoch[1]:
            for metric, less in (("eval_top1", False), ("eval_loss", True)):
                if _is_number(row.get(metric)):
                    return Score(metric, float(row[metric]), less, table.name)
    return None


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{table} is not a table in UTF-8: {error}", "what timm wrote", "remove or mend it"
        ) from error


def _by_name(candidates: list[Path]) -> tuple[Path, str] | None:
    """The one that is called best."""
    named = [p for p in candidates if re.search(r"(^|[^a-z])best([^a-z]|$)", _stem(p.name).lower())]
    return (named[0], "its name says best") if len(named) == 1 else None


def _stem(name: str) -> str:
    """Without the suffixes of files; a folder's dots are its own."""
    ends = sorted((*SUFFIXES, f".safetensors{_INDEX}"), key=len, reverse=True)
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def _is_number(text: str | None) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?(e-?\d+)?", text or "") is not None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: {error}", "what the trainer wrote", "remove or mend it"
        ) from error
    return content if isinstance(content, dict) else {}
