"""YAML and flags in, YAML out: precedence, origins, errors that teach, and the round trip."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from warmstart.config import io
from warmstart.config.schema import Config, leaves
from warmstart.config.values import Duration
from warmstart.errors import UserError


@pytest.fixture
def base(tmp_path: Path) -> dict[str, Any]:
    """The least that a run needs: data that exist and a model."""
    (tmp_path / "data").mkdir()
    return {"data": str(tmp_path / "data"), "model": "builtin:fashion_cnn", "weights": "none"}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "settings.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_flags_win_over_yaml_over_preset_over_defaults(base, write):
    settings = write("optim: {lr: 0.25, min_lr: 0}\ntrain: {epochs: 7}")
    loaded = io.load(base | {"lr": "0.5", "clip": None}, settings, "light")
    optim, train = loaded.config.optim, loaded.config.train
    assert (optim.lr, optim.min_lr, train.epochs) == (0.5, 0.0, 7)
    assert loaded.config.data.batch_size == 256  # the preset's
    assert optim.momentum == 0.9  # the default
    assert loaded.origins["optim.lr"] == "flag"
    assert loaded.origins["train.epochs"] == settings
    assert loaded.origins["data.batch_size"] == "preset light"
    assert "optim.momentum" not in loaded.origins
    assert loaded.origins["optim.clip"] == "preset light"  # None means that the flag was not given


@pytest.mark.parametrize("written", ["4e-4", "4E-4", "4.0e-4", ".0004", "'4e-4'"])
def test_every_number_is_a_number(base, write, written):
    assert io.load(base, write(f"optim: {{lr: {written}}}")).config.optim.lr == 4e-4


def test_underscores_and_dashes_are_the_same(base):
    assert io.load(base | {"batch-size": 4}).config == io.load(base | {"batch_size": "4"}).config


def test_data_path_may_stand_alone(base, write):
    settings = write(f"data: {base['data']}\nmodel: builtin:fashion_cnn")
    loaded = io.load({"weights": "none"}, settings)
    assert loaded.config.data.path == base["data"]
    assert loaded.config.model.name == "builtin:fashion_cnn"
    assert loaded.origins["data.path"] == settings


def test_empty_files_and_sections_say_nothing(base, write):
    for text in ("", "# only a comment", "optim:\ntrain:\n", "---\n"):
        assert io.load(base, write(text)).config == io.load(base).config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 3}", r"unknown key 'optim\.lrr'\n(.*\n)*Fix: Did you mean 'lr'\?"),
        ("train: {lr: 3}", r"unknown key 'train\.lr'\nFix: it is called 'optim\.lr'"),
        ("lr: 3", r"'lr' stands at the top level\nExpected: it belongs to optim\.lr"),
        ("optm: {lr: 3}", r"unknown key 'optm'\n(.*\n)*Fix: Did you mean 'optim'\?"),
        ("epoch: 3", r"unknown key 'epoch'\n(.*\n)*Fix: Did you mean 'epochs'\?"),
        ("optim: 3", r"optim is 3\nExpected: keys below optim:"),
        ("[1, 2]", r"holds a list\nExpected: sections such as data:, model:"),
        ("words", "holds a str"),
        ("null: 1", "unknown key 'None'"),
        ("optim:\n  lr: 1\n  lr: 2", r"is not valid YAML: key 'lr' is given twice .*line 3"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "key 'optim' is given twice"),
        ("? [a]\n: 1", "is not valid YAML: a key is not a word"),
        ("a: b: c", "is not valid YAML: mapping values are not allowed here"),
        ("optim:\n\tlr: 3", r"is not valid YAML: .*character '\\t' that cannot start any token"),
        ("a\0b: 1", "is not valid YAML: unacceptable character"),
        ("[" * 20_000, "is not valid YAML"),
        ("train: {epochs: " + "9" * 5000 + "}", "is not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_file(base, write, text, message):
    with pytest.raises(UserError, match=message):
        io.load(base, write(text))


def test_a_section_merged_twice_is_yaml(base, write):
    """`<<` is a key that PyYAML resolves itself."""
    loaded = io.load(base, write("optim: &o {lr: 3}\nadapt:\n  <<: {freeze_bn: true}"))
    assert loaded.config.adapt.freeze_bn
    assert loaded.config.optim.lr == 3


@pytest.mark.parametrize(
    ("content", "reason"), [(b"\xff\xfe\x00", "it is not UTF-8 text"), (None, "No such file or directory")]
)
def test_an_unreadable_file(base, write, tmp_path, content, reason):
    path = str(tmp_path / "none.yaml") if content is None else write(content)
    with pytest.raises(UserError, match=f"cannot read the config .*: {reason}\nExpected: a YAML file"):
        io.load(base, path)


def test_a_folder_is_no_config(base):
    with pytest.raises(UserError, match=r"cannot read the config .*: Is a directory"):
        io.load(base, base["data"])


def test_windows_line_ends_and_a_byte_order_mark_are_fine(base, write):
    assert io.load(base, write(b"\xef\xbb\xbfoptim:\r\n  lr: 4e-4\r\n")).config.optim.lr == 4e-4


def test_an_unknown_preset(base):
    with pytest.raises(
        UserError, match=r"there is no preset 'lite'\n.*conservative.*\nFix: Did you mean 'light'"
    ):
        io.load(base, preset="lite")


def test_an_unknown_setting_of_the_python_interface(base):
    with pytest.raises(UserError, match=r"unknown setting 'learning_rat'"):
        io.load(base | {"learning_rat": 1})


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("lr", "x", r"--lr \(optim\.lr\): Input should be a valid number.*, got 'x'"),
        ("lr", "", r"--lr \(optim\.lr\): Input should be a valid number.*, got ''$"),
        ("epochs", "1.5", r"--epochs \(train\.epochs\): Input should be a valid integer"),
        ("scheduler", "cosinus", r"--scheduler .*\nFix: Did you mean 'cosine'\?"),
        ("lrs", "backbone", r"--lrs \(adapt\.lrs\): 'backbone' is not of the form 'backbone=1e-5'"),
        ("seed", 2**63, r"--seed .*less than"),
        ("name", "", r"--name .*at least 1 character"),
    ],
)
def test_a_wrong_value(base, flag, value, message):
    with pytest.raises(UserError, match=message):
        io.load(base | {flag: value})


def test_all_problems_come_together(base, write):
    settings = write("optim: {lr: x, scheduler: cosin}\ntrane: {epochs: 3}\nadapt: {freeze: {a: b}, lrs: 3}")
    with pytest.raises(UserError) as caught:
        io.load({"epochs": "many", "batchsize": 3, "data": base["data"] + "x", "mean": ".5"}, settings)
    message = str(caught.value)
    assert message.startswith("10 problems in the settings:\n  1. ")
    for part in (
        "unknown key 'trane'",
        "unknown setting 'batchsize'",
        "--lr (optim.lr)",
        "Did you mean 'cosine'?",
        "--freeze (adapt.freeze)",
        "--lrs (adapt.lrs)",
        "--epochs (train.epochs)",
        "only one of --mean and --std is given",
        "Did you mean 'data'?",
        "neither --model nor --weights is given",
    ):
        assert part in message


@pytest.mark.parametrize(
    "flag", ["lrs", "freeze", "unfreeze", "warmup", "clip", "ema", "patience", "limit", "mean"]
)
def test_none_is_a_word(base, flag):
    config = io.load(base | {flag: "none"}).config
    leaf = next(leaf for leaf in leaves() if leaf.flag == flag)
    assert getattr(getattr(config, leaf.section), leaf.name) in (None, ())


def random_values(rng: random.Random) -> dict[str, Any]:
    """Typed values for a random half of the leaves, wild in form but within every range."""
    number = lambda: rng.choice([rng.random(), 1e-7, 1 / 3])  # noqa: E731
    word = lambda: rng.choice(["a b", "ünï/码.*", "it's: #1", "...", "no", "1e5", "- x", "{a}"])  # noqa: E731
    choices: dict[str, Any] = {
        "data": word(),
        "limit": rng.choice([0.3, 500, 1e-6]),
        "image-size": rng.choice(["7", "3x8192"]),
        "mean": [number(), number(), number()],
        "std": "0.1,0.2,0.3",
        "batch-size": rng.randint(1, 10**9),
        "workers": rng.choice(["auto", "0", 3]),
        "rotation": number(),
        "model": word(),
        "weights": word(),
        "class-weights": "a=1,b=2",
        "freeze": ["conv*", word()],
        "freeze-bn": rng.choice([True, False, "yes"]),
        "lrs": {"a": number(), "b.*": "4e-4"},
        "unfreeze": "0:head,3:all",
        "lr": number(),
        "warmup": rng.choice(["2epochs", "0.05", 1e-6, "1234567steps"]),
        "scheduler-step": Duration(1.25, "epochs"),
        "clip": "none",
        "time-budget": "90s",
        "max-steps": "none",
        "ema": 0.999,
        "select-by": "ece",
        "seed": 2**63 - 1,
        "name": word(),
        "tensorboard": False,
    }
    return {flag: value for flag, value in choices.items() if rng.random() < 0.5}


@pytest.mark.parametrize("seed", range(60))
def test_what_is_written_is_read_back(write, seed):
    by_flag = {leaf.flag: leaf for leaf in leaves()}
    nested: dict[str, dict[str, Any]] = {}
    for flag, value in random_values(random.Random(seed)).items():
        nested.setdefault(by_flag[flag].section, {})[by_flag[flag].name] = value
    config = Config.model_validate(nested)
    text = io.to_yaml(config, {"optim.lr": "flag"})
    assert io.from_dict(yaml.safe_load(text)) == config
    assert "flag" in next(line for line in text.split("\n") if line.strip().startswith("lr:"))


def test_a_written_config_is_a_config_file(base, write):
    loaded = io.load(base | {"lr": "4e-4", "freeze": "conv*", "warmup": ".1", "name": "no"})
    again = io.load({}, write(io.to_yaml(loaded.config, loaded.origins)))
    assert again.config == loaded.config
    assert again.warnings == ()  # defaults that stand in a file are not given by anyone


def test_a_recorded_config_that_was_spoilt():
    with pytest.raises(UserError, match=r"not one of this version of warmstart \(optim\.lr: .*\)"):
        io.from_dict({"optim": {"lr": "x"}})


def test_the_template_sets_what_is_known(base, write):
    settings = write(io.template({"data.path": base["data"], "model.name": "builtin:fashion_cnn"}))
    assert (
        io.load({}, settings).config == io.load({"data": base["data"], "model": "builtin:fashion_cnn"}).config
    )


@pytest.mark.parametrize("mark", ["#", "# "], ids=["hash", "hash and a space"])
@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: leaf.path)
def test_each_line_of_the_template_can_be_uncommented(write, base, leaf, mark):
    """As its header says, one at a time; an editor that comments with `# ` changes nothing."""
    given = {"data.path": base["data"], "model.name": "builtin:fashion_cnn"}
    text = io.template(given).replace("  #", f"  {mark}") if mark == "# " else io.template(given)
    text = text.replace(f"{mark}{leaf.name}: ", f"{leaf.name}: ")
    content = yaml.safe_load(text)
    assert leaf.name in content[leaf.section]
    expected = given.get(leaf.path, leaf.default)
    loaded = io.from_dict({section: body for section, body in content.items() if body is not None})
    assert getattr(getattr(loaded, leaf.section), leaf.name) == expected


def test_the_whole_template_uncommented(write, base):
    given = {"data.path": base["data"], "model.name": "builtin:fashion_cnn"}
    lines = io.template(given).split("\n")
    text = "\n".join(line.replace("  #", "  ", 1) if line.startswith("  #") else line for line in lines)
    assert io.load({}, write(text)).config == io.load({}, write(io.template(given))).config


def test_sections_alone():
    from warmstart.config.schema import DataConfig, TextConfig

    assert io.validate_section(DataConfig, {"image_size": "32"}).image_size == (32, 32)
    with pytest.raises(
        UserError, match=r"2 problems in the settings:\n  1\. --image-size: 'x' is not an image size"
    ):
        io.validate_section(DataConfig, {"image_size": "x", "crop_pct": 7})
    with pytest.raises(UserError, match=r"^--text\.prompts: 'a dog' has no {} where"):
        io.validate_section(TextConfig, {"prompts": "a dog"})
