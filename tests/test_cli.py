"""The command line in process: help, exit codes, messages, and one JSON object on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart import __version__
from warmstart.cli import main
from warmstart.commands import COMMANDS


def fails(argv: list[str], capsys) -> str:
    """The message of a command line that the user has to mend: exit code 2, nothing on stdout."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """40 small pictures of two classes, dark and bright."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for low, name in ((0, "dark"), (128, "hell ü")):
        (root / name).mkdir()
        for number in range(20):
            pixels = rng.integers(low, low + 128, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> tuple[Path, str, str]:
    """A really trained run, and what the command wrote to stdout and stderr."""
    run = tmp_path_factory.mktemp("runs") / "one"
    argv = ["finetune", "--data", str(images), "--model", "builtin:fashion_cnn", "--weights", "none"]
    argv += ["--image_size=16", "--epochs", "1", "--output-dir", str(run), "--save-model", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        import io

        out, err = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert main(argv) == 0
    return run, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]], ids=str)
def test_help_lists_every_command(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert any(line.strip(" │").startswith(name) for line in out.split("\n")), name
        assert command.help.split(",")[0][:30] in out
    assert (
        "Exit codes: 0 done, 1 a fault of warmstart, 2 something you can mend, 130 interrupted."
        in " ".join(out.split())
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    for flag in COMMANDS[name].flags():
        assert (f"--{flag.name.replace('_', '-')}" in out) != flag.is_rare
    assert "--json" in out


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"warmstart {__version__}\n"


def test_an_unknown_command(capsys):
    assert "there is no command 'finetun'" in (err := fails(["finetun"], capsys))
    assert "Did you mean 'finetune'?" in err


def test_unknown_flags_come_together(capsys):
    err = fails(["finetune", "--epohcs", "3", "--learnin_rate=1", "--lr", "1", "--lr=2", "--zzz"], capsys)
    assert err.split("\n") == [
        "error: 4 problems in the command line:",
        "  1. unknown flag --epohcs",
        "     Fix: Did you mean '--epochs'?",
        "  2. unknown flag --learnin-rate",
        "     Fix: Did you mean '--train-ratio'?",
        "  3. --lr is given twice",
        "     Expected: one value for one setting",
        "  4. unknown flag --zzz",
        "",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("runs --josn", "unknown flag --josn\nFix: Did you mean '--json'?"),
        ("finetune --learning-rate 1 --lr 2", "--lr is given twice"),
        ("finetune --freeze-bn --no-freeze-bn", "specified multiple times"),
        ("finetune --no-json", "Unknown option: --no-json"),
        ("finetune --freeze-bn=maybe", 'unable to convert "maybe" into bool'),
        ("finetune one two", "finetune has no use for 'one', 'two'\nExpected: every value behind its flag"),
        ("finetune -x", "Unknown option: -x"),
        ("finetune --lr", "--lr requires an argument"),
        ("finetune --lr=", "--lr is empty\nExpected: a value, or leave the flag out"),
        ("finetune --unfreeze -1:head", "--unfreeze requires an argument"),
        ("show", "--run requires an argument"),
        ("evaluate nowhere --batch-size x", 'Invalid value for --batch-size: unable to convert "x" into int'),
        ("evaluate nowhere --batch-size 0", "Must be >= 1"),
        ("predict nowhere x.png --top-k 0", 'Invalid value "0" for --top-k. Must be >= 1'),
        ("predict nowhere --image x.png --image y.png", "nowhere"),
        ("resume nowhere --workers -1", "Must be >= 0"),
        ("show nowhere", "nowhere does not exist\nExpected: a run directory"),
        ("runs nowhere", "nowhere is not a folder"),
        ("completion tcsh", "completion for 'tcsh' is not known\nExpected: bash, zsh or fish"),
        ("finetune --preset lite", "there is no preset 'lite'"),
        ("finetune --config nowhere.yaml", "cannot read the config nowhere.yaml"),
        (f"show {'x' * 5000}", "File name too long"),
    ],
    ids=lambda value: value[:40],
)
def test_what_the_user_can_mend(argv, message, capsys):
    assert message in fails(argv.split(), capsys)


@pytest.mark.parametrize(
    "argv", [["show", ""], ["predict", "x", "a.png", ""], ["check", "x", "--data", ""]], ids=str
)
def test_an_empty_value_is_never_the_current_folder(argv, capsys):
    assert "is empty\nExpected: a value, or leave the flag out" in fails(argv, capsys)


def test_settings_of_every_bad_kind_in_one_message(capsys):
    bad = {"lr": "x", "epochs": "-3", "seed": str(2**64), "limit": "inf", "lrs": "backbone", "unfreeze": "x"}
    bad |= {
        "image-size": "99999",
        "mean": "ü",
        "eval-every": "0",
        "device": "cpu",
        "name": "../x",
        "clip": "nan",
    }
    err = fails(["finetune", *(part for flag, value in bad.items() for part in (f"--{flag}", value))], capsys)
    assert "error: 13 problems in the settings:" in err
    for flag in set(bad) - {"device"}:
        assert f"--{flag}" in err


def test_an_interruption_is_130(monkeypatch, capsys):
    from warmstart import api

    def interrupted(**values: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "runs", interrupted)
    assert main(["runs"]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_finetune_says_one_object_and_nothing_else(trained, images):
    run, out, err = trained
    found = json.loads(out)
    assert found.keys() >= {"run", "metrics", "num_samples", "split"}
    assert found["run"] == str(run)
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert found["num_samples"] == 4  # a tenth of 40
    assert "alias: --save-model has no effect here: the best model is always saved" in err
    assert "step 0/" in err


def test_a_run_is_listed_and_shown(trained, images, capsys):
    run, _, _ = trained
    assert main(["runs", str(run.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["run"], row["state"], row["model"]) == (str(run), "finished", "builtin:fashion_cnn")
    assert main(["show", str(run), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["data"]["classes"] == ["dark", "hell ü"]
    assert [block["name"] for block in info["plan"]] == ["conv1", "conv2", "conv3", "fc1", "head"]
    assert main(["show", str(run)]) == 0
    assert f"{run}: finished" in capsys.readouterr().out


def test_nothing_is_overwritten(trained, images, capsys):
    run, _, _ = trained
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    argv = ["finetune", "--data", str(images), "--weights", str(run), "--output-dir", str(run)]
    err = fails(argv, capsys)
    assert "is not empty" in err
    assert f"choose another --output-dir, or, if it is an interrupted run, `warmstart resume {run}`" in err
    assert "is finished: nothing is left to resume" in fails(["resume", str(run)], capsys)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_init_writes_a_file_to_start_from(images, trained, tmp_path, capsys):
    target = tmp_path / "new.yaml"
    argv = ["init", str(images), str(trained[0]), "--output", str(target)]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"config": str(target)}
    assert "exists already" in fails(argv, capsys)
    assert (
        main(["finetune", "--config", str(target), "--runs-dir", str(tmp_path), "--dry-run", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["plan"]] == ["conv1", "conv2", "conv3", "fc1", "head"]
    assert all({"name", "mode", "lr"} <= row.keys() for row in found["plan"])
    assert [path.name for path in tmp_path.iterdir()] == ["new.yaml"]  # a dry run writes nothing


def test_a_diverged_number_is_still_json(monkeypatch, capsys):
    from warmstart import api

    monkeypatch.setattr(api, "runs", lambda: [{"loss": float("nan"), "deep": (float("inf"), 0.5)}])
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [{"loss": None, "deep": [None, 0.5]}]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "batch-size", "top-k"):
        assert word in script
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"script": script.removesuffix("\n")}


def test_quick_commands_import_nothing_heavy(tmp_path):
    """One process: help of all kinds, runs and refused settings; then what was imported on the way."""
    lines = [
        ["--help"],
        ["finetune", "--help"],
        ["runs", str(tmp_path)],
        ["finetune", "--lr", "x"],
        ["show", "x"],
    ]
    code = (
        "import sys; from warmstart.cli import main\n"
        f"codes = [main(line) for line in {lines!r}]\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'sklearn', 'numpy', 'pyarrow', 'tensorboard',\n"
        "         'cv2', 'PIL', 'safetensors'}\n"
        "print('RESULT', codes, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "RESULT [0, 0, 0, 2, 2] []"


def test_a_reader_that_stops_early_and_a_narrow_terminal(tmp_path):
    """`warmstart ... | head -1` ends quietly; a class name that the encoding lacks is escaped."""
    command = f"{sys.executable} -m warmstart completion bash | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("# Bash completion for warmstart\n", "")
    (tmp_path / "ü").mkdir()
    command = [sys.executable, "-m", "warmstart", "show", str(tmp_path / "ü")]
    done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert done.returncode == 2
    assert b"\\xfc is not a run directory" in done.stderr
