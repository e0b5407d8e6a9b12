"""How often `warmstart compare` is wrong where there is nothing to find, and how often it finds what there is.

    python bench/compare.py [--trials 2000] [--log docs/logs/compare.jsonl] [--picture docs/power.png]

Simulated evaluations, seeded, a few minutes on one core; what the log has is not done again. The tables are in
docs/is-it-better.md.
What is called a verdict is decided by the functions of the command itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

from warmstart import stats
from warmstart.analysis.compare.answers import Answers
from warmstart.analysis.compare.differences import (
    LEVEL,
    Difference,
    ExactTest,
    differences,
    direction,
    interval,
)
from warmstart.analysis.compare.measures import measure
from warmstart.analysis.compare.recipes import hierarchical
from warmstart.analysis.compare.sides import Side

Costs = np.ndarray  # (2, N): 1 where a model is wrong


def verdicts(cost: Costs, level: float = LEVEL) -> dict[str, int]:
    """By the interval alone, by the exact test alone, and by both, as the command decides."""
    low, high = stats.bootstrap_interval(cost[0] - cost[1], None, max(2000, int(100 / level)), 1 - level)
    test = ExactTest.of(cost)
    main = Difference("accuracy", 1 - cost[0].mean(), 1 - cost[1].mean(), low, high)
    return {
        "interval alone": int(low > 0) - int(high < 0),
        "exact test alone": int(np.sign(test.fixed - test.broken)) * (test.p < level),
        "both": direction(main, test, level),
    }


def paired(rng: np.random.Generator, num: int, fixed: float, broken: float) -> Costs:
    """Answers of two models, of which the second fixes and breaks so large shares; 10 % are wrong in both."""
    kinds = rng.choice(4, size=num, p=(fixed, broken, 0.1, 0.9 - fixed - broken))
    return np.stack([(kinds == 0) | (kinds == 2), (kinds == 1) | (kinds == 2)]).astype(float)


def swapped(rng: np.random.Generator, cost: Costs) -> Costs:
    """The two models' answers, exchanged for each sample by the throw of a coin: then neither is better."""
    coin = rng.random(cost.shape[1]) < 0.5
    return np.where(coin, cost[::-1], cost)


def rates(found: list[dict[str, int]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] != 0 for row in found])), 4) for name in found[0]}


def false_verdicts(trials: int) -> Iterator[dict]:
    """Two models that are equally good: every verdict is false."""
    rng = np.random.default_rng(0)
    for num in (100, 300, 1000, 3000):
        for changed in (0.02, 0.1, 0.3):
            real = paired(rng, num, 0.8 * changed, 0.2 * changed)
            found = [verdicts(swapped(rng, real)) for _ in range(trials)]
            yield {"part": "swapped labels", "samples": num, "changed": changed, **rates(found)}
        found = [verdicts((rng.random((2, num)) > 0.9).astype(float)) for _ in range(trials)]
        yield {"part": "same accuracy, own mistakes", "samples": num, **rates(found)}
    same = (rng.random(1000) > 0.9).astype(float)
    yield {"part": "the same model twice", "samples": 1000, **rates([verdicts(np.stack([same, same]))])}


def best_of_many(trials: int) -> Iterator[dict]:
    """Row 3D of the founding documents: the best of 19 on 100 images, against a model that is as good."""
    rng = np.random.default_rng(1)
    for num in (100, 1000):
        found: dict[str, list[dict[str, int]]] = {"not counted": [], "counted": []}
        for _ in range(trials):
            first = (rng.random(num) > 0.85).astype(float)
            others = np.where(rng.random((19, num)) < 0.7, first, rng.random((19, num)) > 0.85).astype(float)
            pair = np.stack([first, others[others.mean(axis=1).argmin()]])
            found["not counted"].append(verdicts(pair))
            found["counted"].append(verdicts(pair, LEVEL / 19))
        rows = {name: rates(rows)["both"] for name, rows in found.items()}
        yield {"part": "best of 19", "samples": num, **rows}


def whole_path(trials: int) -> Iterator[dict]:
    """Scores of three classes through all metrics: how often an interval of two equally good models excludes 0."""
    rng = np.random.default_rng(2)
    excluded: dict[str, list[bool]] = {}
    targets = np.arange(400) % 3
    for _ in range(trials):
        models = []
        for name in "ab":
            logits = rng.normal(size=(400, 3)) + 2 * np.eye(3)[targets]
            scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            ids = tuple(map(str, range(400)))
            models.append(
                Answers(Side(name), "classification", tuple("xyz"), ids, targets, scores.astype(np.float32))
            )
        for row in differences(measure(models), LEVEL):
            excluded.setdefault(row.name, []).append(row.low > 0 or row.high < 0)
    for name, values in excluded.items():
        yield {
            "part": "intervals",
            "metric": name,
            "samples": 400,
            "excludes 0": round(float(np.mean(values)), 4),
        }


def power(trials: int) -> Iterator[dict]:
    """How often a true gain is found, and what `about M would do` says of the same shares."""
    rng = np.random.default_rng(3)
    changed = 0.1
    for gain in (0.01, 0.02, 0.05):
        fixed, broken = (changed + gain) / 2, (changed - gain) / 2
        enough = stats.sample_size(fixed, broken)
        for num in (100, 200, 400, 800, 1600, 3200, 6400, 12800):
            found = [verdicts(paired(rng, num, fixed, broken))["both"] for _ in range(trials)]
            row = {"part": "power", "gain": gain, "changed": changed, "samples": num, "enough": enough}
            yield {
                **row,
                "better": float(np.mean(np.equal(found, 1))),
                "worse": float(np.mean(np.equal(found, -1))),
            }


def recipes(trials: int) -> Iterator[dict]:
    """Seeds as chance: accuracies of S seeds a side that spread by `deviation`, on 1,000 samples."""
    rng = np.random.default_rng(4)
    for seeds in (3, 5):
        for deviation in (0.0, 0.01, 0.03):
            for gain in (0.0, 0.05):
                found = [_recipe(rng, seeds, deviation, gain) for _ in range(trials)]
                yield {
                    "part": "recipes",
                    "seeds": seeds,
                    "deviation": deviation,
                    "gain": gain,
                    **rates(found),
                }


def _recipe(rng: np.random.Generator, seeds: int, deviation: float, gain: float) -> dict[str, int]:
    hardness = rng.normal(size=1000)  # what is hard for one seed is hard for another, of both recipes
    means = np.repeat([0.8, 0.8 + gain], seeds) + deviation * rng.normal(size=2 * seeds)
    cuts = [NormalDist(0, 0.98**0.5).inv_cdf(min(max(mean, 1e-6), 1 - 1e-6)) for mean in means]
    own = 0.7 * hardness + 0.7 * rng.normal(size=(2 * seeds, 1000))
    right = own < np.array(cuts)[:, None]
    values = stats.resampled_sums(right.T.astype(float), 500).T / 1000
    low, high = interval(hierarchical(values[:seeds], values[seeds:]), LEVEL)
    shares = right.mean(axis=1)
    p = stats.welch_p(shares[:seeds], shares[seeds:])
    by_interval = int(low > 0) - int(high < 0)
    return {
        "interval alone": by_interval,
        "t-test alone": int(np.sign(shares[seeds:].mean() - shares[:seeds].mean())) * (p < LEVEL),
        "both": by_interval if p < LEVEL else 0,
    }


def draw(rows: list[dict], path: Path) -> None:
    """Power over the number of samples, one curve per true gain, with the number that the command names."""
    from matplotlib.figure import Figure

    from warmstart.analysis.figures import BLUE, GREEN, GREY, ORANGE

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for gain, colour in ((0.01, BLUE), (0.02, ORANGE), (0.05, GREEN)):
        own = [row for row in rows if row["part"] == "power" and row["gain"] == gain]
        label = f"{gain:.0%} better (about {own[0]['enough']:,} would do)"
        axes.plot(
            [row["samples"] for row in own], [row["better"] for row in own], "o-", color=colour, label=label
        )
        axes.axvline(own[0]["enough"], color=colour, linestyle=":", linewidth=1.2)
    axes.axhline(0.8, color=GREY, linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="samples", ylabel="share of verdicts BETTER", ylim=(0, 1.02))
    axes.set_title("One answer in ten differs between the two models")
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--log", type=Path, default=Path("docs/logs/compare.jsonl"))
    parser.add_argument("--picture", type=Path, default=Path("docs/power.png"))
    asked = parser.parse_args()
    parts = (
        (false_verdicts, asked.trials),
        (best_of_many, asked.trials // 4),
        (power, asked.trials // 2),
        (recipes, asked.trials // 4),
        (whole_path, asked.trials // 10),
    )
    lines = asked.log.read_text(encoding="utf-8").splitlines() if asked.log.exists() else []
    rows = [json.loads(line) for line in lines]
    for part, trials in parts:
        if any(row["of"] == part.__name__ and row["trials"] == trials for row in rows):
            continue  # done before
        found = [{"of": part.__name__, **row, "trials": trials} for row in part(max(1, trials))]
        with asked.log.open("a", encoding="utf-8") as log:
            log.writelines(json.dumps(row) + "\n" for row in found)
        rows += found
        print(*found, sep="\n", flush=True)
    draw(rows, asked.picture)


if __name__ == "__main__":
    main()
