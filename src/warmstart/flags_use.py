"""The flags of the commands that use, look into or tell of what was trained."""

from __future__ import annotations

from warmstart.flags import BATCH, EXECUTION, JSON, LABELS, MASKS, MODEL, TASK, Flag


def evaluate_flags() -> tuple[Flag, ...]:
    return (
        MODEL,
        Flag("data", "data set [default: the run's own]"),
        Flag("split", "train, val, test, several with commas, or all [default: test, else val]"),
        Flag("output_dir", "folder for tables and pictures [default: inside the run]"),
        Flag("pictures", "draw confusion, calibration, mistakes, ... [default: as the run]", bool),
        Flag("zero_shot", "answer by the names of the data's classes: hf:FOLDER of a CLIP or SigLIP", bool),
        Flag("text.prompts", "as in finetune: templates, or a YAML or JSON file class -> prompts"),
        TASK,
        LABELS,
        *MASKS,
        BATCH,
        *EXECUTION,
    )


def predict_flags() -> tuple[Flag, ...]:
    return (
        MODEL,
        Flag("images", "files and folders of images", list, positional=True, required=True),
        Flag("top_k", "classes per image [default: 5]", int, least=1),
        Flag("output", "NAME.csv or NAME.json to write; a new folder for masks"),
        Flag("scales", "masks: sizes to look at, 1 is that of training, for example .9,1,1.1 [default: 1]"),
        Flag("flip", "masks: look at the mirror image too", bool),
        TASK,
        BATCH,
        *EXECUTION,
    )


def report_flags() -> tuple[Flag, ...]:
    return (
        Flag(
            "target",
            "run directory, or the folder or JSON file of a comparison or a sweep",
            positional=True,
            required=True,
        ),
        Flag("lang", "en or zh [default: en]"),
        Flag("images", "put pictures of the data into it [default: true]", bool),
        Flag("output", "FILE.html to write [default: report.html in the folder of the target]"),
        JSON,
    )


def track_flags() -> tuple[Flag, ...]:
    return (
        Flag("run", "run directory", positional=True, required=True),
        Flag("to", "mlflow or wandb", required=True),
        Flag("project", "name of the experiment (mlflow) or project (wandb) [default: warmstart]"),
        Flag("images", "send the pictures too, as artifacts [default: true]", bool),
        Flag("again", "send a run once more that was sent already", bool),
        JSON,
    )


def diagnose_flags() -> tuple[Flag, ...]:
    return (
        Flag(
            "run",
            "run directory, folder of runs, history.json, summary.csv, trainer_state.json or metrics.csv",
            positional=True,
            required=True,
        ),
        Flag("write", "FILE.yaml to write: settings with the remedies, for finetune or continue"),
        Flag("picture", "FILE.png to write: the curves, and since when something went wrong"),
        JSON,
    )
