"""The flags of the commands: own ones, and those that the schema gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from warmstart.config.compress_section import CompressConfig
from warmstart.config.schema import Config, leaves
from warmstart.config.section import Section
from warmstart.config.sweep_section import SweepConfig
from warmstart.run.layout import CONTINUE_INFO


@dataclass(frozen=True)
class Flag:
    """One parameter of a command: `kind` is str, int, bool or list; positional ones need no dashes."""

    name: str
    help: str
    kind: type = str
    group: str = "Options"
    positional: bool = False
    required: bool = False
    least: int = 0  # of an int
    is_rare: bool = False  # shown by --help-all only


JSON = Flag("json", "print one JSON object on stdout; progress stays on stderr", bool)
DEVICE = Flag("device", "auto, cpu, cuda, cuda:1, mps")
WORKERS = Flag("workers", "decoding threads", int)
BATCH = Flag("batch_size", "images per batch [default: the run's evaluation batch size]", int, least=1)
LABELS = Flag("label_columns", "columns of 0 and 1 that make a multi-label data set [default: the run's]")
MASKS = (
    Flag("masks", "folder or column of index masks [default: the run's, else found by name]"),
    Flag(
        "mask_classes",
        "names in the order of the masks' ids, or a file of them [default: the run's, else as the data say,"
        " else the model's]",
    ),
    Flag("ignore", "id in masks that is no class [default: the run's, else 255]", int),
    Flag("mask_remap", "ids of masks to change, all at once: 11=255,12=3 [default: the run's]"),
    Flag(
        "mask_colours",
        "ids of the colours of RGB masks: red.green.blue=id,..., or a file [default: the run's]",
    ),
)
MODEL = Flag(
    "model",
    "run directory, RUN@step, file of weights, FILE.onnx, or hf:FOLDER",
    positional=True,
    required=True,
)
TASK = Flag("task", "name of a task, where the model has several")
_FOREIGN = tuple(
    Flag(name, text, group="For files that do not say it themselves")
    for name, text in (
        ("model_name", "timm:NAME, torchvision:NAME or builtin:NAME"),
        ("image_size", "HxW in pixels"),
        ("mean", "channel means for pixels in [0, 1]"),
        ("std", "channel deviations"),
        ("crop_pct", "share kept by the centre crop"),
    )
)
EXECUTION = (DEVICE, WORKERS, JSON, *_FOREIGN)


def finetune_flags() -> tuple[Flag, ...]:
    titles = {name: (field.annotation.__doc__ or name) for name, field in Config.model_fields.items()}
    settings = tuple(
        Flag(
            leaf.flag.replace("-", "_"),
            leaf.description + _default_text(leaf.default),
            bool if leaf.annotation is bool else str,
            f"{leaf.section}: {titles[leaf.section].rstrip('.')}",
            is_rare=leaf.is_rare,
        )
        for leaf in leaves()
    )
    return (
        Flag("preset", "named settings to start from: " + ", ".join(_preset_names())),
        Flag("config", "YAML file of settings; flags win over it"),
        Flag("dry_run", "print the plan with memory and time, write nothing", bool),
        JSON,
        *settings,
    )


def meta_flags() -> tuple[Flag, ...]:
    """Those of finetune, with its own section in front and shown."""
    own = [replace(flag, is_rare=False) for flag in finetune_flags() if flag.name.partition(".")[0] == "meta"]
    names = {flag.name for flag in own}
    return (*own, *(flag for flag in finetune_flags() if flag.name not in names))


def multitask_flags() -> tuple[Flag, ...]:
    """Those of finetune; what is about several tasks is no rare setting here."""
    return tuple(
        replace(flag, is_rare=False) if flag.name.partition(".")[0] == "tasks" else flag
        for flag in finetune_flags()
    )


def advise_flags() -> tuple[Flag, ...]:
    """Those of finetune: what is given stays, and the rules are asked about the rest."""
    return (
        Flag("data", "data set", positional=True, required=True),
        Flag("goal", "best, balanced, quick or edge [default: balanced]"),
        Flag("device_memory", "memory of the device to plan for: 8GB [default: what is free here]"),
        Flag("to", "YAML file to write, for finetune --config"),
        Flag("run", "try the first ones of the ranking by successive halving, and keep the best run", bool),
        *(flag for flag in finetune_flags() if flag.name not in ("preset", "config", "dry_run", "data")),
    )


def continue_flags() -> tuple[Flag, ...]:
    """Those of finetune, without the weights, which are the parent's."""
    return (
        Flag("parent", "run, RUN@step, or checkpoint of another program", positional=True, required=True),
        Flag("keep", "all, optimizer (weights and moments) or weights of the parent [default: all]"),
        Flag("continue_info", f"write {CONTINUE_INFO} into the run", bool),
        *(flag for flag in finetune_flags() if flag.name != "weights"),
    )


def _default_text(default: Any) -> str:
    if default is None or default == ():
        return ""
    return f" [default: {str(default).lower() if isinstance(default, bool) else default}]"


def _preset_names() -> list[str]:
    from warmstart.config.io import preset_names

    return preset_names()


def prepare_flags() -> tuple[Flag, ...]:
    return (
        Flag("kind", "parquet or folders", positional=True, required=True),
        Flag("annotations", "CSV file, folders of images, or another data set", positional=True),
        Flag("output", "parquet: FILE.parquet to write"),
        Flag("output_dir", "folders: new folder for train, val and test folders of class folders"),
        Flag(
            "group",
            "column, or pattern with one (group) over the image ids: a group never crosses a split",
        ),
        Flag("train_ratio", "share of training images [default: 0.8]"),
        Flag(
            "val_ratio",
            "share of validation images; the rest is test [default: parquet 0.1, folders half of what train leaves]",
        ),
        Flag(
            "classes",
            "parquet: names of the labels in their order, for example closed,open; folders: the classes to take"
            " [default: all, as they are]",
        ),
        Flag("num_classes", "folders: take so many classes, those with the most images", int, least=2),
        Flag(
            "class_folder",
            "folders: the class of an image is the first folder below the data, or the last, which holds it"
            " [default: first]",
        ),
        Flag("validate", "folders: decode every image, and leave out and list those that cannot be", bool),
        Flag("embed", "parquet: put the images into the file", bool),
        Flag("seed", "seed of the split [default: 0]", int),
        JSON,
    )


def blend_flags() -> tuple[Flag, ...]:
    return (
        Flag("models", "START TUNED, TUNED alone, or RUN with --last", list, positional=True, required=True),
        Flag("alphas", "shares of TUNED to measure [default: 0,.1,...,1]"),
        Flag("choose", "best, mean or gain=SHARE [default: best; with --retain: mean]"),
        Flag("last", "average so many of the last checkpoints instead", int, least=2),
        Flag("retain", "data that should not be forgotten: measured beside TUNED's val"),
        Flag("bn", "BatchNorm statistics: keep (blended), or estimate from training images [default: keep]"),
        Flag("output_dir", "new folder of the run [default: TUNED-blend beside it]"),
        DEVICE,
        WORKERS,
        JSON,
    )


def explain_flags() -> tuple[Flag, ...]:
    return (
        MODEL,
        Flag("images", "files and folders of images [default: a split of the data]", list, positional=True),
        Flag("data", "data set [default: the run's own]"),
        Flag("split", "train, val, test, several with commas, or all [default: test, else val]"),
        Flag(
            "method",
            "grad-cam, rollout, filters, activations, embedding, cka, or several [default: all that apply]",
        ),
        Flag("class_name", "explain this class only, in images that have it [default: answer and label]"),
        Flag("layer", "path of the layer whose maps are drawn [default: the last that lies over the image]"),
        Flag("num", "images to look at: half right, half wrong [default: 12]", int, least=1),
        Flag(
            "limit",
            "labelled images to choose from and to map, drawn at random [default: 1000]",
            int,
            least=1,
        ),
        Flag(
            "start", "cka: run, RUN@step, file or zoo's name to compare with [default: the run's own start]"
        ),
        Flag("projection", "embedding: pca, tsne, umap, or several [default: pca,tsne]"),
        Flag("output", "new folder for the page and its pictures [default: inside the run]"),
        TASK,
        LABELS,
        *MASKS,
        *EXECUTION,
    )


def compare_flags() -> tuple[Flag, ...]:
    return (
        Flag("models", "two models: runs, RUN@step or files of weights; or more runs", list, positional=True),
        Flag("recipes", "two recipes instead, at least 3 seeds each: A1,A2,A3 B1,B2,B3", list),
        Flag("data", "data set to measure all models on [default: the runs' own]"),
        Flag("split", "train, val or test; retain where both runs kept it [default: test, else val]"),
        Flag("require", 'what must hold, else the exit code is 1: "f1 not worse; no class -2pt"'),
        Flag("output_dir", "new folder for tables and pictures [default: none]"),
        TASK,
        LABELS,
        *MASKS,
        BATCH,
        *EXECUTION,
    )


def export_flags() -> tuple[Flag, ...]:
    return (
        Flag(
            "model", "run directory, RUN@step, file of weights, or hf:FOLDER", positional=True, required=True
        ),
        Flag("to", "onnx, torch-export, safetensors, hf, timm or source", required=True),
        Flag("output", "file or folder to write [default: beside the run or the file]"),
        Flag("data", "images to compare the answers on [default: the run's own; else noise]"),
        Flag("num_images", "how many [default: 32]", int, least=1),
        TASK,
        WORKERS,
        JSON,
        *_FOREIGN,
    )


def compress_flags() -> tuple[Flag, ...]:
    return (
        Flag("model", "run directory, RUN@step, or file of weights", positional=True, required=True),
        *_own_flags(CompressConfig, DEVICE.name, WORKERS.name),
        Flag("dry_run", "say what it would take, write nothing", bool),
        DEVICE,
        WORKERS,
        JSON,
    )


def sweep_flags() -> tuple[Flag, ...]:
    what = "YAML file of settings, as of finetune; or the folder of a sweep to go on with"
    return (Flag("config", what, positional=True, required=True), *_own_flags(SweepConfig), JSON)


def _own_flags(section: type[Section], *without: str) -> Iterator[Flag]:
    """Those of a command's own section; a required one is given once for each of its items."""
    for name, field in section.model_fields.items():
        if name not in without:
            kind = list if field.is_required() else bool if field.annotation is bool else str
            default = "" if field.is_required() else _default_text(field.default)
            yield Flag(name, (field.description or "") + default, kind)


def merge_flags() -> tuple[Flag, ...]:
    return (
        Flag("model", "run with adapters, RUN@step, or adapter folder", positional=True, required=True),
        Flag("base", "file, run or zoo's name to put an adapter folder on [default: the one it names]"),
        Flag("to", "FILE.safetensors to write [default: MODEL-merged.safetensors beside it]"),
        Flag("force", "take a base whose tensors are not those that the adapter was trained on", bool),
        Flag("bits", "4: store the merged weights in 4 bits, and say the error", int, least=4),
        DEVICE,
        JSON,
    )
