"""The verbs that read folders, of runs or of data, and use no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart import console
from warmstart.arguments import labelled_data
from warmstart.config import io as config_io
from warmstart.config.schema import DataConfig
from warmstart.errors import UserError, listing

if TYPE_CHECKING:
    from warmstart.analysis.summary import Description, RunList
    from warmstart.data.prepare_parquet import Preparation


def runs(folder: str = "runs") -> RunList:
    """One row per run directory below `folder`."""
    from warmstart.analysis.summary import list_runs

    return list_runs(folder)


def show(run: str) -> Description:
    """What a run directory says: state, start and best, plan, where things lie."""
    from warmstart.analysis.summary import describe_run

    return describe_run(run)


def init(
    data: str,
    weights: str | None = None,
    output: str = "warmstart.yaml",
    label_columns: str | None = None,
) -> str:
    """Write a commented YAML to start from, with what the data and the weights tell filled in."""
    console.setup()
    from warmstart.analysis.start import starting_settings
    from warmstart.run.writer import write_text

    target = Path(output)
    if target.exists():
        raise UserError(
            f"{target} exists already", "a new file", "choose another --output, or remove it first"
        )
    labelled = labelled_data(data, {"label_columns": label_columns})
    write_text(target, config_io.template(starting_settings(labelled, weights)))
    return str(target)


_OF_PARQUET, _OF_FOLDERS = {"embed"}, {"num_classes", "validate", "class_folder"}


def prepare(
    kind: str,
    annotations: str | None = None,
    output: str | None = None,
    *,
    output_dir: str | None = None,
    classes: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Preparation:
    """Annotations or folders of images, divided so that no group and no picture crosses a split.

    `kind` parquet: one file, `output`. `classes` are names for the labels, in their order; `embed` puts the images into
    the file. `kind` folders: copies below `output_dir`/SPLIT/CLASS. `classes` are those to take, or the `num_classes`
    with the most images; `validate` decodes every image; `class_folder` is first (below the data) or last.
    `settings` besides: group, train_ratio, val_ratio.

    Raises:
        UserError: another kind, data that cannot be read or have not one class per image, ratios above 1.
    """
    console.setup()
    names = tuple(name.strip() for name in classes.split(",")) if classes else ()
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    _check_request(kind, annotations, {"output": output, "output_dir": output_dir}, given)
    division = _division(kind, {name: given.pop(name) for name in set(given) - _OF_PARQUET - _OF_FOLDERS})
    assert annotations is not None, "checked above"
    with console.progress("reading the images", 1) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        if kind == "parquet":
            from warmstart.data.prepare_parquet import prepare_parquet

            embed = bool(given.get("embed", False))
            return prepare_parquet(annotations, str(output), division, seed, names, embed, report)
        from warmstart.data.prepare_folders import Wanted, prepare_folders

        innermost = given.pop("class_folder", "first") == "last"
        wanted = Wanted(names, innermost=innermost, **given)
        return prepare_folders(annotations, str(output_dir), division, wanted, seed, report)


def _check_request(
    kind: str, annotations: str | None, places: dict[str, str | None], given: dict[str, Any]
) -> None:
    """UserError for a kind that is not known, and for settings that it has no use for, or lacks."""
    if kind not in ("parquet", "folders"):
        raise UserError(
            f"prepare {kind}",
            "prepare parquet, or prepare folders",
            "warmstart prepare folders IMAGES --output-dir FOLDER",
        )
    own, other = (_OF_PARQUET, _OF_FOLDERS) if kind == "parquet" else (_OF_FOLDERS, _OF_PARQUET)
    need, useless = ("output", "output_dir") if kind == "parquet" else ("output_dir", "output")
    if unknown := set(given) - own - other - {"group", "train_ratio", "val_ratio"}:
        raise UserError(f"prepare takes no {listing(sorted(unknown))}", "group, train_ratio, val_ratio")
    dead = sorted(set(given) & other) + ([] if places[useless] is None else [useless])
    problems = [
        UserError(f"--{name.replace('_', '-')} has no effect in prepare {kind}", "leave it out")
        for name in dead
    ]
    if annotations is None:
        problems.append(
            UserError(
                f"prepare {kind}: no images are named; nothing is downloaded",
                "class folders, a CSV file of path,label, or another data set",
                f"warmstart prepare {kind} IMAGES --{need.replace('_', '-')} ...",
            )
        )
    if places[need] is None:
        problems.append(UserError(f"prepare {kind} has no --{need.replace('_', '-')}", "where to write"))
    if given.get("class_folder", "first") not in ("first", "last"):
        problems.append(UserError(f"--class-folder {given['class_folder']}", "first or last"))
    if problems:
        raise UserError.of_problems(problems, "the command line")


def _division(kind: str, settings: dict[str, Any]) -> DataConfig:
    """group and ratios. In folders, val and test share what train leaves unless --val-ratio is given."""
    division = config_io.validate_section(DataConfig, settings)
    if kind == "folders" and "val_ratio" not in settings:
        half = round((1 - division.train_ratio) / 2, 12)
        division = config_io.validate_section(DataConfig, {**settings, "val_ratio": half})
    if division.train_ratio + division.val_ratio > 1 + 1e-9:
        raise UserError(
            f"--train-ratio {division.train_ratio:g} and --val-ratio {division.val_ratio:g} add up to more than 1",
            "their sum at most 1; what is left becomes the test split",
        )
    return division
