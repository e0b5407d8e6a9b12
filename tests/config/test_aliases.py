"""The founding documents' flags: each is understood, and what it became is said."""

from __future__ import annotations

import platform

import pytest

from warmstart.cli import main
from warmstart.config.aliases import ALIASES, translate
from warmstart.config.io import load
from warmstart.errors import UserError

# Document 000: the commands of the seed, and row 0.11.
SEED = {
    "--model-path m.pt": "--weights m.pt",
    "--save-model-dir out/": "--save-as out/mnist_cnn_finetuned.pt",
    "--freeze-conv": "--freeze conv*",
    "--test-batch-size 10000": "--eval-batch-size 10000",
    "--log-interval 40": "--log-every 40steps",
    "--val-interval 0": "--eval-every 1epochs",
    "--val-interval 200": "--eval-every 200steps",
    "--save-model": "",
    "--dataset ../data": "--data ../data",
    "--dir logs_finetune": "--runs-dir logs_finetune",
    "--no-cuda": "" if platform.system() == "Darwin" else "--device cpu",
    "--no-mps": "--device cpu" if platform.system() == "Darwin" else "",
}
SAME = [
    "--batch-size 256",
    "--epochs 50",
    "--lr 0.001",
    "--min-lr 0.00001",
    "--scheduler cosine",
    "--freeze-bn",
]
SAME += ["--scheduler-step 10", "--scheduler-gamma 0.5", "--dropout 0.3", "--momentum 0.9", "--seed 1"]
LATER = {
    "--pretrain a.pt": "--weights a.pt",
    "--checkpoint a.pt": "--weights a.pt",
    "--learning_rate 1e-4": "--lr 1e-4",
    "--num_workers 16": "--workers 16",
    "--warmup_epochs 10": "--warmup 10epochs",
    "--max_grad_norm 1": "--clip 1",
    "--gradient_accumulation_steps 4": "--accumulate 4",
    "--early_stopping_patience 7": "--patience 7",
    "--use_amp": "--precision auto",
}


@pytest.mark.parametrize(("given", "becomes"), list((SEED | LATER).items()))
def test_what_each_flag_becomes(given, becomes):
    tokens, notes = translate("finetune", given.split())
    assert tokens == becomes.split()
    assert len(notes) == 1
    assert notes[0].startswith(f"{given} ")
    assert f"is {becomes}" in notes[0] if becomes else "has no effect here: " in notes[0]


@pytest.mark.parametrize("given", [flag for flag in SEED | LATER if " " in flag])
def test_value_after_an_equals_sign(given):
    assert translate("finetune", [given.replace(" ", "=")])[0] == translate("finetune", given.split())[0]


@pytest.mark.parametrize("given", ["--model-path=a=b.pt", "--model_path=a=b.pt"])
def test_only_the_first_equals_sign_separates(given):
    assert translate("finetune", [given])[0] == ["--weights", "a=b.pt"]


def test_the_dead_ones_say_why():
    _, notes = translate("finetune", ["--save-model"])
    assert notes == ["--save-model has no effect here: the best model is always saved"]


def test_what_is_no_alias_is_left_alone():
    tokens = ["--lr", "1", "--data=x", "--", "word", "-x", "--unknown=1"]
    assert translate("finetune", tokens) == (tokens, [])
    assert translate("runs", ["--model-path", "x"]) == (["--model-path", "x"], [])


@pytest.mark.parametrize("tokens", [["--model-path"], ["--model-path", "--lr", "3"], ["--save-model-dir="]])
def test_a_value_that_is_missing(tokens):
    with pytest.raises(UserError, match=r"--[a-z-]+ has no value\nExpected: --[a-z-]+ VALUE"):
        translate("finetune", tokens)


def test_a_switch_takes_no_value():
    with pytest.raises(UserError, match="--freeze-conv=false: --freeze-conv takes no value"):
        translate("finetune", ["--freeze-conv=false"])


def test_readers_of_models_take_it_by_name():
    for command in ("evaluate", "check"):
        assert translate(command, ["--checkpoint", "RUN@3", "--dataset", "d"])[0] == ["RUN@3", "--data", "d"]
    assert translate("predict", ["--image_dir", "d"])[0] == ["--images", "d"]


@pytest.mark.parametrize("command", sorted(ALIASES))
def test_every_alias_becomes_flags_that_exist(command):
    from warmstart.commands import COMMANDS

    known = COMMANDS[command].flag_names()
    for name, alias in ALIASES[command].items():
        flags = [token[2:] for token in alias.becomes("5") if token.startswith("--")]
        assert set(flags) <= known, name
        assert name not in known, f"--{name} is a flag itself"


def test_the_whole_command_line_of_the_seed(tmp_path, capsys):
    """Every flag of rows 0.1 to 0.11 at once; only what is really missing is complained about."""
    given = [
        flag for flag in SEED if flag not in ("--val-interval 200", "--no-mps", "--no-cuda", "--freeze-conv")
    ]
    argv = " ".join(given + SAME).replace("../data", str(tmp_path)).split()
    assert main(["finetune", *argv]) == 2
    captured = capsys.readouterr()
    assert "error: --weights: m.pt does not exist" in captured.err
    assert "problems" not in captured.err
    assert captured.err.count("alias: ") == len(given)
    assert captured.out == ""


def test_help_all_lists_the_aliases(capsys):
    assert main(["finetune", "--help-all"]) == 0
    out = capsys.readouterr().out
    for name in ALIASES["finetune"]:
        assert f"--{name} " in out


# ---- document 002

CONTINUE = {
    "--checkpoint RUN": "RUN",
    "--reset_optimizer": "--keep weights",
    "--mode preserve": "--keep all",
    "--mode hybrid": "--keep optimizer",
    "--mode reset": "--keep weights",
    "--learning_rate 4e-4": "--lr 4e-4",
}


@pytest.mark.parametrize(("given", "becomes"), list(CONTINUE.items()))
def test_flags_of_continue(given, becomes):
    assert translate("continue", given.split())[0] == becomes.split()


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("--freeze_backbone", "--freeze backbone"),
        (
            "--freeze_backbone --unfreeze_backbone_epoch 20",
            "--unfreeze 0:head,20:backbone>0.5",
        ),
        (
            "--freeze_backbone --unfreeze_backbone_epoch 20 --unfreeze_backbone_ratio .25 --stage2_lr 6e-5 "
            "--unfreeze_all_f1_threshold .85 --stage3_lr 2e-5",
            "--unfreeze 0:head,20:backbone>.25@6e-5,f1_positive>=.85:all@2e-5",
        ),
        ("--unfreeze-all-f1-threshold .8 --freeze-backbone", "--unfreeze 0:head,f1_positive>=.8:all"),
        (
            "--freeze_backbone --unfreeze_backbone_epoch 5 --unfreeze_backbone_ratio 1.0",
            "--unfreeze 0:head,5:all",
        ),
    ],
)
def test_the_flags_of_progressive_unfreezing_become_one_setting(given, becomes):
    tokens, notes = translate("finetune", ["data", *given.split(), "--lr", "1e-3"])
    assert tokens == ["data", "--lr", "1e-3", *becomes.split()]
    assert len(notes) == 1 and notes[0].endswith(f" is {becomes}")
    load({"data": ".", "model": "x", "epochs": 30, tokens[-2].removeprefix("--"): tokens[-1]})


@pytest.mark.parametrize(
    ("given", "dead"),
    [
        ("--unfreeze_backbone_epoch 20", "without --freeze_backbone nothing is frozen"),
        ("--freeze_backbone --stage2_lr 1e-4", "without --unfreeze-backbone-epoch"),
        ("--freeze_backbone --stage3_lr 1e-4", "without --unfreeze-all-f1-threshold"),
        (
            "--freeze_backbone --unfreeze_backbone_epoch 5 --unfreeze_backbone_ratio 1 --unfreeze_all_f1_threshold .8",
            "all trains already from --unfreeze-backbone-epoch",
        ),
    ],
)
def test_what_has_no_effect_in_progressive_unfreezing_is_said(given, dead):
    _, notes = translate("finetune", given.split())
    assert notes[-1].endswith(f"has no effect here: {dead}")


# ---- document 001: imbalance and mining

OCEC_FORK = {
    "--pos_weight 2.5": "--class-weights positive=2.5",
    "--neg_class_weight 1.2": "--class-weights negative=1.2",
    "--neg_class_weight 1.2 --pos_weight 2": "--class-weights positive=2,negative=1.2",
    "--pos_weight 2 --freeze_backbone": "--freeze backbone --class-weights positive=2",
    "--tb_port 6006 --unfreeze_all_after_resume": "",
    "--mine RUN --enable_hard_negative_mining --hard_neg_min_prob .7 --hard_neg_weight 2.0": (
        "--mine RUN --mine-prob .7 --mine-weight 2.0"
    ),
    "--margin_method cosface": "--margin_method cosface",
}


@pytest.mark.parametrize(("given", "becomes"), list(OCEC_FORK.items()))
def test_flags_of_the_fork(given, becomes):
    assert translate("finetune", given.split())[0] == becomes.split()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--enable_hard_negative_mining", "does nothing by itself\nExpected: --mine RUN beside it"),
        ("--hard_neg_weight 2", "--hard_neg_weight 2 does nothing by itself"),
        (
            "--pseudo_update_start_epoch 25",
            "--pseudo_update_start_epoch 25: refused: a model that is taught what it thinks",
        ),
        ("--pretrained_backbone imagenet", "--weights FILE starts from a file"),
        ("--pretrained_weights_dir w", "--weights FOLDER takes the best of its files"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused_by_name(given, words):
    with pytest.raises(UserError) as caught:
        translate("finetune", given.split())
    assert words in str(caught.value)


# ---- document 004: train.py, evaluate.py, inference.py

SCRIPTS = {
    "finetune": "--config c.yaml --data_dir data/dogs --output_dir outputs/full_finetuning",
    "evaluate": "--checkpoint RUN --data_dir data/dogs --split test --output_dir out --batch_size 32",
    "predict": "--checkpoint RUN --image dog.jpg --image_dir dogs --top_k 5 --output found.csv",
}


@pytest.mark.parametrize("command", SCRIPTS)
def test_command_lines_of_document_004(command):
    from warmstart.commands import COMMANDS

    tokens, _ = translate(command, SCRIPTS[command].split())
    names = [token[2:].replace("_", "-") for token in tokens if token.startswith("--")]
    assert set(names) <= COMMANDS[command].flag_names()
    assert command == "finetune" or tokens[0] == "RUN"
    assert command == "predict" or "data" in names
