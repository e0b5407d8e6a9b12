"""From records to Markdown: one function per row, each gives the lines of a table and the verdicts on its goals.

Figures are medians over rounds; a ratio is the median of the ratios of each round, with their range. The fastest
peer is the one with the best median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
from from_scratch import interval
from sides import LIMIT, OURS, PEERS

Records = Sequence[dict]
Metric = Callable[[dict], float]


@dataclass(frozen=True)
class Verdict:
    goal: str
    figure: str
    reached: bool

    @property
    def text(self) -> str:
        return "reached" if self.reached else "**missed**"


Section = tuple[list[str], list[Verdict]]


def later_speed(record: dict, before: int = 1) -> float:
    """Images per second after so many epochs."""
    ends = record["epoch_ends"]
    return record["images_per_epoch"] * (len(ends) - before) / (ends[-1] - ends[before - 1])


def first_speed(record: dict) -> float:
    return record["images_per_epoch"] / record["epoch_ends"][0]


def wall(record: dict) -> float:
    return record["wall_s"]


def beyond_imports(record: dict) -> float:
    return record["wall_s"] - record["import_s"]


def before_loop(record: dict) -> float:
    """Seconds from process start to the loop: what had passed at its first row, less the row's own."""
    return record["first_row_s"] - record["epoch_ends"][0]


def before_step(record: dict) -> float:
    """Seconds from process start to the first step; a step is taken to last as the second one."""
    first, second = record["epoch_ends"][:2]
    return record["first_row_s"] - (second - first)


def full(records: Records) -> Section:
    lines = side_table(records, {"images/s from the second epoch on": later_speed, "whole process, s": wall})
    return lines, [
        ratio_verdict(records, later_speed, 0.92, LIMIT),
        ratio_verdict(records, later_speed, 2.0, fastest(records, later_speed)),
    ]


def end_to_end(records: Records) -> Section:
    return against_peers(records, {1.8: wall})


def last2(records: Records) -> Section:
    return against_peers(records, {4.0: wall})


def head(records: Records) -> Section:
    return against_peers(records, {8.0: wall, 10.0: beyond_imports})


def against_peers(records: Records, goals: dict[float, Metric]) -> Section:
    """Seconds of whole processes; every goal is a speed-up over the fastest peer."""
    lines = side_table(records, {"whole process, s": wall, "without imports, s": beyond_imports})
    verdicts = []
    for goal, metric in goals.items():
        peer = fastest(records, metric, less_is_better=True)
        what = " without imports" if metric is beyond_imports else ""
        verdicts.append(ratio_verdict(records, lambda r, m=metric: 1 / m(r), goal, peer, what))
    return lines, verdicts


def accuracy(records: Records) -> Section:
    """Differences to the best peer, paired by seed and image; the interval is a bootstrap over both."""
    lines = side_table(records, {"accuracy": share_right}, digits=4)
    goal = "no worse than the best peer's beyond the interval"
    best, ours = fastest(records, share_right), by_round(records, OURS)
    theirs = by_round(records, best) if best else {}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return lines, [not_measured(goal)]
    differences = np.stack([answers(ours[seed]) - answers(theirs[seed]) for seed in seeds])
    low, high = interval(differences)
    count = f"{len(seeds)} seeds, {differences.shape[1]} images"
    figure = f"{differences.mean():+.4f} to {best}'s, 95 % interval {low:+.4f} to {high:+.4f} ({count})"
    return lines, [Verdict(goal, figure, high >= 0)]


def warm(records: Records) -> Section:
    lines = side_table(records, {"whole process, s": wall, "without imports, s": beyond_imports})
    return lines, [below(records, "warm", beyond_imports, 2.0, "the repeated run, beyond imports")]


def cifar(records: Records) -> Section:
    lines = side_table(records, {"images/s in the epoch": first_speed, "whole process, s": wall})
    return lines, [ratio_verdict(records, first_speed, 0.92, LIMIT)]


def memory(records: Records) -> Section:
    def per_image(record: dict) -> float:
        """Milliseconds, from the rows of single steps: no validation, warming up or last short batch in it."""
        ends = record["epoch_ends"]
        first, last = min(10, len(ends) // 2 - 1), len(ends) - 2
        return (ends[last] - ends[first]) / (last - first) / 32 * 1000

    metrics: dict[str, Metric] = {"peak memory, MB": lambda r: r["rss_mb"], "ms per image": per_image}
    few, many = list(dict.fromkeys(record["side"] for record in sorted(records, key=size_of)))
    verdicts = []
    for (name, metric), most in zip(metrics.items(), (1.10, 1.05), strict=True):
        ratios = round_ratios(records, metric, many, few)
        goal = f"{name}: at most {most:.2f} x with ten times the images"
        verdicts.append(
            Verdict(goal, spread_text(ratios, " x"), median(ratios) <= most) if ratios else not_measured(goal)
        )
    return side_table(records, {"ms per image": per_image}, digits=2), verdicts


def overhead(records: Records) -> Section:
    """Less the imports of torch and timm in a process of their own; the store is there already."""
    imports = by_round(records, "imports")
    verdicts = []
    lines = ["| seconds beyond importing torch and timm | median (range) |", "|---|---|"]
    for name, metric in (
        ("before the loop", before_loop),
        ("before the first step, with the validation at step 0", before_step),
    ):
        ours = by_round(records, OURS)
        values = [metric(ours[n]) - imports[n]["wall_s"] for n in sorted(ours.keys() & imports.keys())]
        goal = f"{name}: < 1 s"
        lines.append(f"| {name} | {spread_text(values)} |")
        verdicts.append(
            Verdict(goal, spread_text(values, " s"), median(values) < 1) if values else not_measured(goal)
        )
    heavy = sorted({name for record in by_round(records, OURS).values() for name in record["heavy"]})
    found = ", ".join(heavy) or "none"
    verdicts.append(
        Verdict("no torchmetrics, scikit-learn, matplotlib, peft before the first step", found, not heavy)
    )
    return lines, verdicts


def workers(records: Records) -> Section:
    """small: all ways but the features agree; photographs: all cached ways agree, and so do all uncached ones."""
    lines = ["| way | photographs | small images |", "|---|---|---|"]
    for side in dict.fromkeys(record["side"] for record in records):
        cells = [
            next(r.get("hash") or r["failure"] for r in records if (r["side"], r["images"]) == (side, kind))
            for kind in ("photographs", "small")
        ]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    groups = {
        "small images: caches off, in memory, on disk, cold, warm; 0 or 4 workers": ("small", "off ram disk"),
        "photographs, cached: in memory, on disk, cold, warm; 0 or 4 workers": ("photographs", "ram disk"),
        "photographs, cache off: 0 or 4 workers": ("photographs", "off"),
        "photographs, features cold and warm": ("photographs", "features"),
    }
    verdicts = []
    for name, (kind, ways) in groups.items():
        members = [r for r in records if r["images"] == kind and r["side"].split(",")[0].split()[0] in ways]
        hashes = {record.get("hash") for record in members}
        reached = len(hashes) == 1 and None not in hashes
        verdicts.append(
            Verdict(f"equal weights, {name}", f"{len(hashes)} different hash(es) of {len(members)}", reached)
        )
    return lines, verdicts


def segmentation(records: Records) -> Section:
    metrics = {"images/s from the second epoch on": later_speed, "whole process, s": wall}
    lines, models = model_tables(records, metrics)
    return lines, [ratio_verdict(own, later_speed, 0.9, LIMIT, f", {model}") for model, own in models.items()]


def masks_frozen(records: Records) -> Section:
    third = partial(later_speed, before=2)
    lines, models = model_tables(
        records, {"images/s from the third epoch on": third, "whole process, s": wall}
    )
    verdicts = []
    for model, own in models.items():
        ratios = round_ratios(own, third, "features on", "features off")
        goal = f"faster with kept features from the third epoch on, {model}"
        verdicts.append(Verdict(goal, spread_text(ratios, " x"), bool(ratios) and median(ratios) > 1))
        ratios = round_ratios(own, wall, "features off", "features on")
        goal = f"faster with kept features as a whole process of 4 epochs, {model}"
        verdicts.append(Verdict(goal, spread_text(ratios, " x"), bool(ratios) and median(ratios) > 1))
    return lines, verdicts


def model_tables(records: Records, metrics: dict[str, Metric]) -> tuple[list[str], dict[str, list[dict]]]:
    """A table for each model, and its records."""
    lines, models = [], {}
    for model in dict.fromkeys(record.get("model", "") for record in records):
        models[model] = [record for record in records if record.get("model", "") == model]
        lines += [f"`{model}`:", "", *side_table(models[model], metrics), ""]
    return lines[:-1], models


def resume_start(records: Records) -> Section:
    metrics = {"process start to the first step, s": before_step}
    fresh, resumed = (by_round(records, side) for side in ("fresh", "resumed"))
    more = [before_step(resumed[n]) - before_step(fresh[n]) for n in sorted(fresh.keys() & resumed.keys())]
    goal = "a resumed run's first step: at most 2 s after a fresh run's"
    lines = side_table(records, metrics, digits=2)
    return lines, [Verdict(goal, spread_text(more, " s"), bool(more) and median(more) <= 2)]


def side_table(records: Records, metrics: dict[str, Metric], digits: int = 1) -> list[str]:
    """One row per side: the median of each metric with its range, or why there is none."""
    lines = [f"| side | {' | '.join(metrics)} | peak memory, MB |", "|---" * (len(metrics) + 2) + "|"]
    for side in dict.fromkeys(record["side"] for record in sorted(records, key=in_order)):
        found = list(by_round(records, side).values())
        if not found:
            why = next(record["failure"] for record in records if record["side"] == side)
            lines.append(f"| {side} | {why} |" + " |" * len(metrics))
            continue
        cells = [
            spread_text([metric(record) for record in found], digits=digits) for metric in metrics.values()
        ]
        lines.append(f"| {side} | {' | '.join(cells)} | {median(r['rss_mb'] for r in found):.0f} |")
    return lines


def by_round(records: Records, side: str) -> dict[int, dict]:
    """The records of a side that measured something."""
    return {r["round"]: r for r in records if r["side"] == side and "failure" not in r}


def in_order(record: dict) -> int:
    order = [*PEERS, LIMIT, OURS]
    return order.index(record["side"]) if record["side"] in order else 0


def size_of(record: dict) -> int:
    return int(record["side"].split()[0].replace(",", ""))


def fastest(records: Records, metric: Metric, less_is_better: bool = False) -> str | None:
    found = {side: list(by_round(records, side).values()) for side in PEERS}
    medians = {side: median(map(metric, runs)) for side, runs in found.items() if runs}
    choose = min if less_is_better else max
    return choose(medians, key=lambda side: medians[side]) if medians else None


def round_ratios(records: Records, metric: Metric, side: str, other: str | None) -> list[float]:
    ours, theirs = by_round(records, side), by_round(records, other) if other else {}
    return [metric(ours[n]) / metric(theirs[n]) for n in sorted(ours.keys() & theirs.keys())]


def ratio_verdict(
    records: Records, metric: Metric, goal: float, other: str | None, what: str = ""
) -> Verdict:
    ratios = round_ratios(records, metric, OURS, other)
    text = f">= {goal:g} x the {LIMIT if other == LIMIT else 'fastest peer'}{what}"
    if not ratios:
        return not_measured(text)
    return Verdict(text, f"{spread_text(ratios, ' x')}, against {other}", median(ratios) >= goal)


def below(records: Records, side: str, metric: Metric, goal: float, what: str) -> Verdict:
    values = [metric(record) for record in by_round(records, side).values()]
    text = f"{what}: < {goal:g} s"
    return Verdict(text, spread_text(values, " s"), median(values) < goal) if values else not_measured(text)


def not_measured(goal: str) -> Verdict:
    return Verdict(goal, "not measured", False)


def spread_text(values: Sequence[float], unit: str = "", digits: int = 2) -> str:
    """'1.93 x (1.88 to 2.01)'; one value has no range."""
    if not values:
        return "not measured"
    text = f"{median(values):.{digits}f}{unit}"
    several = len(values) > 1
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})" if several else text


def answers(record: dict) -> np.ndarray:
    return np.array([float(letter) for letter in record["right"]])


def share_right(record: dict) -> float:
    return float(answers(record).mean())
