"""The founding documents' YAML files: every key becomes a setting, or is named as one without meaning here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from warmstart.config.io import Loaded, load
from warmstart.config.schema import leaves
from warmstart.config.values import Cadence, Duration
from warmstart.config.yaml_aliases import SWITCHES, YAML_KEYS
from warmstart.errors import UserError

DOCUMENTS = Path(__file__).parent / "documents"


def read(folder: Path, text: str, **flags: str) -> Loaded:
    config = folder / "c.yaml"
    config.write_text(text)
    return load({"data": str(folder), "model": "builtin:fashion_cnn", **flags}, str(config))


def test_every_key_becomes_a_setting_that_exists() -> None:
    known = {leaf.path for leaf in leaves()}
    for key, alias in YAML_KEYS.items():
        assert alias.path in known if alias.path else alias.why, key
        assert key not in known or key == alias.path == "model.name"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: {learnig_rate: 1}", "unknown key 'training.learnig_rate'"),
        ("training: 3", "training is 3"),
        (
            "training: {learning_rate: 1e-3}\noptim: {lr: 1e-4}",
            "optim.lr is given twice, once by a document's name",
        ),
        ("training: {epochs: many}", "--epochs (train.epochs)"),
        ("training: {num_epochs: 1, epochs: 2}", "train.epochs is given twice by names of the documents"),
        ("training: {lr_scheduler: cosine}", "training.lr_scheduler is 'cosine'"),
        ("training: {lr_scheduler: {typ: cosine}}", "Expected: in training.lr_scheduler: type, num_cycles"),
        (
            "training: {lr_scheduler: {type: polynomial}}",
            "is 'polynomial'\nExpected: cosine, linear, constant",
        ),
        ("training: {lr_scheduler: {type: cosine, num_cycles: 2}}", "num_cycles is 2\nExpected: 0.5"),
        ("training: {warmup_ratio: 3}", "warmup_ratio is 3\nExpected: a share of the run"),
        ("training: {early_stopping: {enabled: 3}}", "early_stopping.enabled is 3\nExpected: true or false"),
        ("training: {layerwise_lr: {enabled: false, rate: 2}}", "unknown key 'training.layerwise_lr.rate'"),
        (
            "training: {layerwise_lr: {enabled: true}}",
            "training.layerwise_lr.enabled is true, and no decay_rate stands beside it: nothing would be switched on\n"
            "Expected: training.layerwise_lr.decay_rate",
        ),
        (
            "training: {early_stopping: {min_delta: .1, patience: null, enabled: true}}",
            "early_stopping.enabled is true, and no patience",
        ),
        ("hardware: {mixed_precision: 7}", "mixed_precision is 7\nExpected: true, false"),
        ("data: {data_dir: x, path: y}", "data.path is given twice"),
        ("data: {num_worker: 1}", "unknown key 'data.num_worker'"),
        (
            "training: {progressive_unfreezing: {unfreeze_schedule: [all]}}",
            "unfreeze_schedule is ['all']\nExpected: a list of {epoch: 2, layers: [",
        ),
    ],
)
def test_what_is_wrong_in_a_documents_yaml(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert told in str(error.value)


def test_the_documents_yaml_says_what_each_key_became(tmp_path: Path) -> None:
    loaded = read(tmp_path, "experiment: {name: a, description: b}\ntraining: {learning_rate: 4e-4}\n")
    assert loaded.config.optim.lr == 4e-4 and loaded.config.output.name == "a"
    assert loaded.notes == (
        "experiment.name is output.name",
        "experiment.description has no effect here: a run has a name and no other description",
        "training.learning_rate is optim.lr",
    )


# ---- document 004


def keys_of(value: object, prefix: str = "") -> list[str]:
    """The dotted keys of a nested mapping; lists are values."""
    if not isinstance(value, dict):
        return [prefix]
    return [key for name, body in value.items() for key in keys_of(body, f"{prefix}.{name}".strip("."))]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_no_key_of_document_004_is_passed_over(name: str, tmp_path: Path) -> None:
    file = DOCUMENTS / f"004-{name}.yaml"
    loaded = load({"data": str(tmp_path), "model": "builtin:fashion_cnn"}, str(file))
    written = keys_of(yaml.safe_load(file.read_text()))
    own = {leaf.path for leaf in leaves()} - {"model.name"}
    told = [note.split()[0] for note in loaded.notes]
    assert sorted(told) == sorted(key for key in written if key not in own)
    assert set(told) <= YAML_KEYS.keys() | set(SWITCHES)
    assert {loaded.origins[path] for path in ("data.path", "model.name")} == {"flag"}


def test_full_fine_tuning_of_document_004(tmp_path: Path) -> None:
    """Row 4.22."""
    config = load({"data": str(tmp_path)}, str(DOCUMENTS / "004-full.yaml")).config
    data, optim, train = config.data, config.optim, config.train
    assert (config.model.name, data.batch_size, data.workers) == ("hf:openai/clip-vit-base-patch32", 16, 4)
    assert (optim.lr, optim.weight_decay, optim.accumulate, optim.clip) == (1e-5, 0.01, 2, 1.0)
    assert (optim.scheduler, optim.warmup) == ("cosine", Duration(0.1, "share"))
    assert (train.epochs, train.patience, train.min_delta, train.seed) == (20, 5, 0.001, 42)
    assert train.eval_every == Cadence(((Duration(200, "steps"), None),))
    assert (train.save_every, train.log_every) == (Duration(500, "steps"), Duration(50, "steps"))
    assert (train.keep_checkpoints, train.precision, train.device) == (3, "auto", "auto")
    assert (config.adapt.layer_decay, config.adapt.unfreeze) == (0.95, ())
    assert config.output.output_dir == "outputs/full_finetuning"


def test_lora_of_document_004(tmp_path: Path) -> None:
    """Row 4.23."""
    config = load({"data": str(tmp_path)}, str(DOCUMENTS / "004-lora.yaml")).config
    lora = config.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 32, 0.1, ("q_proj", "v_proj"))
    assert (config.optim.lr, config.train.epochs, config.train.patience) == (5e-4, 10, 3)
    assert (config.data.batch_size, config.optim.accumulate) == (32, 1)


def test_a_section_that_is_not_enabled_does_nothing_and_says_so(tmp_path: Path) -> None:
    text = (
        "training: {early_stopping: {enabled: %s, patience: 3}, layerwise_lr: {enabled: %s, decay_rate: .9}}"
    )
    on, off = (read(tmp_path, text % (word, word)) for word in ("true", "false"))
    assert (on.config.train.patience, on.config.adapt.layer_decay) == (3, 0.9)
    assert (off.config.train.patience, off.config.adapt.layer_decay) == (None, None)
    assert on.notes[:2] == (
        "training.early_stopping.enabled switches on what stands beside it",
        "training.early_stopping.patience is train.patience",
    )
    assert off.notes[:2] == (
        "training.early_stopping.enabled switches off what stands beside it",
        "training.early_stopping.patience has no effect here: training.early_stopping is not enabled",
    )


def test_layers_by_the_documents_names(tmp_path: Path) -> None:
    """Row 4.09."""
    text = (DOCUMENTS / "004-full.yaml").read_text().replace("enabled: false", "enabled: true")
    loaded = read(tmp_path, text)
    stages = "0:head,2:vision_model.encoder.layers.11,4:vision_model.encoder.layers.10,6:all"
    assert ",".join(map(str, loaded.config.adapt.unfreeze)) == stages
    key = "training.progressive_unfreezing.unfreeze_schedule"
    assert f"{key} ... is adapt.unfreeze {stages}" in loaded.notes
    text = "training: {progressive_unfreezing: {unfreeze_schedule: [{epoch: 0, layers: %s}]}}"
    for layers, blocks in (
        ("[classifier.weight, vision_model.embeddings]", "0:head,0:vision_model.embeddings*"),
        ("[vision_model]", "0:vision_model*"),
        ("[vision_model.encoder.layers.1]", "0:vision_model.encoder.layers.1"),
    ):
        assert ",".join(map(str, read(tmp_path, text % layers).config.adapt.unfreeze)) == blocks


def test_half_precision_where_there_is_none_is_a_warning(tmp_path: Path) -> None:
    """The document's key; `--precision bf16` by our own name is refused (tests/inference/test_device.py)."""
    assert read(tmp_path, "hardware: {mixed_precision: true}").config.train.precision == "auto"
    assert read(tmp_path, "hardware: {mixed_precision: false}").config.train.precision == "float32"
    assert read(tmp_path, "hardware: {device: cpu}").config.train.device == "cpu"


def test_flags_win_over_a_documents_key(tmp_path: Path) -> None:
    loaded = read(tmp_path, "training: {learning_rate: 1e-5}\nseed: 42\n", lr="1e-6")
    assert (loaded.config.optim.lr, loaded.config.train.seed) == (1e-6, 42)
    assert (loaded.origins["optim.lr"], loaded.origins["train.seed"]) == ("flag", str(tmp_path / "c.yaml"))
