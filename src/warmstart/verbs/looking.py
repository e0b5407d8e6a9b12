"""The verbs that look at models and runs: what is in them, and which is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import Data, labelled_data, restore_model
from warmstart.errors import UserError, listing
from warmstart.records import RETAIN

if TYPE_CHECKING:
    from warmstart.analysis.compare.answers import Answers
    from warmstart.analysis.compare.models import ModelComparison
    from warmstart.analysis.compare.recipes import RecipeComparison
    from warmstart.analysis.compare.runs import RunTable
    from warmstart.analysis.compare.sides import Side
    from warmstart.analysis.inspect.inspection import FileDifference, Inspection
    from warmstart.config.schema import DataConfig


def compare(
    models: Sequence[str] | None = None,
    *,
    recipes: Sequence[str | Sequence[str]] | None = None,
    data: Data | None = None,
    split: str | None = None,
    require: str | None = None,
    output_dir: str | None = None,
    **settings: Any,
) -> ModelComparison | RecipeComparison | RunTable:
    """Is the second better? Two models on the same samples; two recipes of several seeds; or a table of several runs.

    `models` are runs, RUN@step or files of weights: two are compared by their answers, more by the rows of the runs.
    `recipes` are two lists of runs, each the seeds of one recipe (or one text with commas). Answers that the runs have
    kept are read, and others measured on `data` (default: the runs' own) and `split` (default: test, else val).
    `require` says what must hold ("f1 not worse; no class -2pt"): `passed` of the result. `output_dir` is a new folder
    for tables and pictures. `settings`: task, batch_size, device, workers, with `data` how its labels are read, and
    module, model_name, image_size, mean, std, crop_pct for files that do not say them.

    Raises:
        UserError: other tasks, classes or samples, too few seeds, or a requirement that is not understood.
    """
    console.setup()
    from warmstart.analysis.compare import files
    from warmstart.analysis.compare.require import parse
    from warmstart.analysis.compare.sides import open_side

    names = [str(name) for name in models or ()]
    groups = [part.split(",") if isinstance(part, str) else list(part) for part in recipes or ()]
    _check_request(names, groups, require, data, split)
    requirements = [] if require is None else parse(require)
    files.check_folder(output_dir)
    labelled = labelled_data(data, settings)
    chosen = None if data is None else labelled
    task = settings.get("task")
    if len(names) > 2:
        from warmstart.analysis.compare.runs import compare_runs

        found: Any = compare_runs([open_side(name, task) for name in names])
        return files.write(found, output_dir)
    sides = [[open_side(name, task) for name in group] for group in groups or [[name] for name in names]]
    if groups:
        from warmstart.analysis.compare.recipes import check_seeds, compare_recipes

        notes = check_seeds(sides)
        answers, where = _answers([*sides[0], *sides[1]], chosen, split, settings)
        parts = answers[: len(sides[0])], answers[len(sides[0]) :]
        return files.write(compare_recipes(parts, *where, requirements, notes, chosen), output_dir)
    from warmstart.analysis.compare.models import compare_models

    answers, where = _answers([sides[0][0], sides[1][0]], chosen, split, settings)
    found = compare_models(answers, *where, requirements, data=chosen)
    return files.write(found, output_dir, chosen)


def inspect(checkpoint: str, other: str | None = None) -> Inspection | FileDifference:
    """What is in a checkpoint: a run (its best, or RUN@step), or a file of weights of any program; beside `other`,
    what differs from the first to the second.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    console.setup()
    from warmstart.analysis.inspect.inspection import inspect as inspect_one
    from warmstart.analysis.inspect.inspection import inspect_two

    return inspect_one(checkpoint) if other is None else inspect_two(checkpoint, other)


def _check_request(
    names: list[str], groups: list[list[str]], require: str | None, data: Data | None, split: str | None
) -> None:
    """UserError for a request that is about nothing, or about two things."""
    if groups and names:
        raise UserError(f"{listing(names)} beside --recipes", "models, or recipes", "leave one of them out")
    if not groups and len(names) < 2:
        raise UserError(
            f"{len(names)} models to compare",
            "two or more",
            "warmstart compare A B, or --recipes A1,A2,A3 B1,B2,B3",
        )
    if groups and len(groups) != 2:
        raise UserError(f"{len(groups)} recipes", "two", "--recipes A1,A2,A3 B1,B2,B3")
    if len(names) > 2:
        given = {"--require": require, "--data": data, "--split": split}
        dead = [flag for flag, value in given.items() if value is not None]
        if dead:
            raise UserError(
                f"{listing(dead)} with {len(names)} runs, which are compared by their rows alone",
                f"two models with {dead[0]}",
                "compare two of them at a time",
            )


def _answers(
    sides: list[Side], data: DataConfig | None, split: str | None, settings: dict[str, Any]
) -> tuple[list[Answers], tuple[str, str]]:
    """The answers of all sides on one split, kept or measured; the split's name and the data's fingerprint."""
    from warmstart.analysis.compare.answers import kept_answers, measure_answers
    from warmstart.analysis.compare.sides import common_split

    batch_size, device = settings.get("batch_size"), settings.get("device") or "auto"
    of_files = {key: value for key, value in settings.items() if key not in ("batch_size", "device")}
    of_runs = {key: value for key, value in of_files.items() if key in ("workers", "task", "module")}

    def restore(reference: str, is_file: bool) -> Any:
        return restore_model(reference, device, dict(of_files if is_file else of_runs))

    chosen = split if data is not None else common_split(sides, split)
    home = next((side for side in sides if side.run is not None), None)
    found, fingerprint = [], "" if home is None else str(home.data.get("fingerprint"))
    for side in sides:
        kept = kept_answers(side, chosen) if data is None and chosen is not None else None
        if kept is None and chosen == RETAIN:
            raise UserError(
                f"{side.label} has kept no answers on the data of --retain",
                "runs of --retain, at their first, best or last step",
                "--data RETAINED measures all of them",
            )
        if kept is None:
            kept, chosen, measured_on = measure_answers(side, chosen, home, data, restore, batch_size)
            fingerprint = measured_on if data is not None else fingerprint
        found.append(kept)
    assert chosen is not None, "measured, and so of a split"
    return found, (chosen, fingerprint)
