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


def prepare(
    kind: str,
    annotations: str,
    output: str,
    *,
    classes: str | None = None,
    embed: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Preparation:
    """Annotations or folders of images -> one parquet file, divided so that no group and no picture crosses a split.

    `kind` is `parquet`. `classes` are names for the labels, in their order; `embed` puts the images into the file.
    `settings`: group, train_ratio, val_ratio.

    Raises:
        UserError: another kind, data that cannot be read or have not one class per image, ratios above 1.
    """
    console.setup()
    if kind != "parquet":
        raise UserError(
            f"prepare {kind}", "prepare parquet", "warmstart prepare parquet ANNOTATIONS --output FILE"
        )
    from warmstart.data.prepare_parquet import prepare_parquet

    if unknown := set(settings) - {"group", "train_ratio", "val_ratio"}:
        raise UserError(f"prepare takes no {listing(sorted(unknown))}", "group, train_ratio, val_ratio")
    division = config_io.validate_section(DataConfig, {k: v for k, v in settings.items() if v is not None})
    if division.train_ratio + division.val_ratio > 1 + 1e-9:
        raise UserError(
            f"--train-ratio {division.train_ratio:g} and --val-ratio {division.val_ratio:g} add up to more than 1",
            "their sum at most 1; what is left becomes the test split",
        )
    names = tuple(name.strip() for name in classes.split(",")) if classes else ()
    with console.progress("reading the images", 1) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done, total=total)

        return prepare_parquet(annotations, output, division, seed, names, embed, report)
