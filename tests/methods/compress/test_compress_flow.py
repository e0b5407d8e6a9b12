"""`warmstart compress`: rounds, result, what goes on after an interruption, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import fresh
from warmstart import api
from warmstart.analysis.summary import lr_rule
from warmstart.cli import main
from warmstart.config.compress_section import CompressConfig
from warmstart.errors import Interrupted, UserError
from warmstart.inference.restore import restore
from warmstart.methods.compress import flow
from warmstart.models.recipe import FACTORISE, RESIZE, SPARSE
from warmstart.models.weights import read_weights
from warmstart.run.reader import Run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def smaller(original: str, tmp_path_factory: pytest.TempPathFactory) -> flow.Compressed:
    folder = tmp_path_factory.mktemp("smaller") / "out"
    made = api.compress(
        original, method="factorise", amount=0.5, epochs=1, output_dir=str(folder), device="cpu"
    )
    assert isinstance(made, flow.Compressed)
    return made


def test_the_result_is_a_run_like_any_other(original: str, smaller: flow.Compressed, tmp_path: Path) -> None:
    assert Run(Path(smaller.run)).status["state"] == "finished"
    before, after = smaller.points
    assert after.cost.macs == pytest.approx(0.5 * before.cost.macs, rel=0.02)
    assert after.cost.num_bytes < 0.6 * before.cost.num_bytes
    assert after.cost.num_parameters == sum(
        p.numel() for p in restore(smaller.run, CPU).built.module.parameters()
    )
    found = api.evaluate(smaller.run, split="val", device="cpu")
    assert found.metrics["accuracy"] == after.metrics["accuracy"]
    assert smaller.test is not None
    assert lr_rule(Run(Path(smaller.run))) is None, "nothing was trained at a rate"
    record = Run(Path(smaller.run)).resolved
    assert record["compress"]["edits"] == [FACTORISE]
    assert record["parent"]["run"] == original
    tuned = api.finetune(
        smaller.run, record["data"]["path"], epochs=1, lr=0.001, device="cpu", output_dir=str(tmp_path / "tuned"),
        tensorboard=False, pictures=False, image_size="16", batch_size=8,
    )  # fmt: skip
    assert read_weights(next(Path(tuned.run).glob("checkpoints/*/model.safetensors"))).recipe is not None
    assert (Path(smaller.run) / "compression.png").stat().st_size > 5000


def test_the_table_has_every_round(smaller: flow.Compressed) -> None:
    text = smaller.text()
    for word in (
        "original",
        "round 1",
        "chosen",
        "MMACs",
        "ms at batch 32",
        "95 % interval",
        "test, against",
    ):
        assert word in text
    record = json.loads((Path(smaller.run) / "compression.json").read_text())
    assert [point["name"] for point in record["points"]] == ["original", "round 1"]
    assert record["points"][1]["change"]["metric"] == "accuracy"
    assert set(record["points"][1]["cost"]["latency"]) == {"1", "32"}


def test_a_fresh_process_gives_the_same_answers(smaller: flow.Compressed, tmp_path: Path) -> None:
    built = restore(smaller.run, CPU).built
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.save((images, built.module(images).detach()), tmp_path / "wanted.pt")
    done = fresh.run(
        code=f"""
import torch
torch.set_num_threads(1)
from warmstart.inference.restore import restore
images, wanted = torch.load({str(tmp_path / "wanted.pt")!r})
assert torch.equal(restore({smaller.run!r}, torch.device("cpu")).built.module(images), wanted)
"""
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupted_compression_goes_on(
    original: str, smaller: flow.Compressed, tmp_path: Path, interrupt_at: object
) -> None:
    """Killed in the middle of the recovery, it ends with the weights of one that was not."""
    out = str(tmp_path / "out")
    given = {"method": "factorise", "amount": 0.5, "epochs": 1, "device": "cpu", "output_dir": out}
    interrupt_at(2)  # type: ignore[operator]
    with pytest.raises(Interrupted, match=f"warmstart resume {re.escape(out)}$"):
        api.compress(original, **given)
    assert not (Path(out) / "resolved.json").exists()
    with pytest.raises(UserError, match=r"--amount was 0\.5"):
        api.compress(original, **{**given, "amount": 0.4})
    again = api.resume(out)
    assert isinstance(again, flow.Compressed)
    name = "checkpoints/step_00000000/model.safetensors"
    ours, theirs = (read_weights(Path(run) / name).state for run in (out, smaller.run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for call in (lambda: api.compress(original, **given), lambda: api.resume(out)):
        with pytest.raises(UserError, match="is finished"):
            call()
    with pytest.raises(UserError, match="was made smaller, without optimizer state"):
        api.continue_run(out)


def test_a_finished_round_is_not_done_again(original: str, tmp_path: Path) -> None:
    given = {
        "method": "factorise",
        "max_drop": "99%",
        "max_rounds": 2,
        "step": 0.2,
        "epochs": 0,
        "device": "cpu",
    }
    first = api.compress(original, output_dir=str(tmp_path / "out"), **given)
    shares = [point.cost.macs / first.points[0].cost.macs for point in first.points]
    assert shares == pytest.approx([1, 0.8, 0.6], abs=0.02)
    # Layers that were two already got a smaller rank: no layer is four.
    file = restore(first.points[2].reference, CPU).reference.file
    assert [edit.kind for edit in read_weights(file).recipe.edits] == [FACTORISE, RESIZE]
    (tmp_path / "out" / "compression.json").unlink()
    shutil.rmtree(tmp_path / "out" / "rounds" / "01-edited" / "predictions")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rounds").glob("*/resolved.json")}
    second = api.compress(original, output_dir=str(tmp_path / "out"), **given)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert second.points[1:] == first.points[1:]


def test_sparse_weights_stay_zero_through_recovery_and_further_training(
    original: str, tmp_path: Path
) -> None:
    made = api.compress(
        original, method="sparse", amount=0.7, epochs=1, output_dir=str(tmp_path / "out"), device="cpu"
    )
    file = read_weights(restore(made.run, CPU).reference.file)
    assert file.recipe.kinds == {SPARSE}
    zeros = {
        name: file.state[name] == 0 for name in file.state if name.endswith("weight") and "head" not in name
    }
    assert sum(int(found.sum()) for found in zeros.values()) > 0.65 * sum(
        found.numel() for found in zeros.values()
    )
    tuned = api.finetune(
        made.run, Run(Path(made.run)).resolved["data"]["path"], epochs=1, device="cpu", image_size="16",
        output_dir=str(tmp_path / "tuned"), tensorboard=False, pictures=False, batch_size=8, optimizer="sgd", lr=0.01,
    )  # fmt: skip
    last = read_weights(restore(f"{tuned.run}@last", CPU).reference.file).state
    moved = 0
    for name, zero in zeros.items():
        assert (last[name][zero] == 0).all(), name
        moved += int((last[name] != file.state[name]).sum())
    assert moved


def test_a_file_is_compressed_on_data_that_are_named(
    original: str, overlapping: Path, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(restore(original, CPU).reference.file, file)
    with pytest.raises(UserError, match="brings no data"):
        api.compress(str(file), method="sparse", epochs=0, device="cpu")
    made = api.compress(
        str(file),
        method="sparse",
        epochs=0,
        data=str(overlapping),
        output_dir=str(tmp_path / "out"),
        device="cpu",
    )
    assert made.points[1].cost.num_nonzero < made.points[0].cost.num_nonzero
    assert Run(tmp_path / "out" / "rounds" / "00").status["state"] == "finished"


def test_the_original_teaches_the_recovery(original: str, tmp_path: Path) -> None:
    made = api.compress(
        original, method="factorise", amount=0.3, epochs=1, distil=True, limit=10, batch_size=4,
        output_dir=str(tmp_path / "out"), device="cpu",
    )  # fmt: skip
    recovery = Run(Path(made.run) / "rounds" / "01")
    assert recovery.config["data"]["limit"] == 10
    assert recovery.config["data"]["batch_size"] == 4
    (teacher,) = recovery.teachers
    assert teacher.partition("@")[0] == original


def test_dry_run_says_the_cost_and_writes_nothing(
    original: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["compress", original, "--max-drop", "1%", "--dry-run", "--json", "--output-dir", str(out)]) == 0
    )
    found = capsys.readouterr()
    assert json.loads(found.out)["original"]["macs"] > 0
    assert "at most 9 rounds of 3 epochs of recovery, about" in found.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": "head"}, "--layers head: fc2 is of the head, whose outputs are the answers"),
        ({"layers": "nothing"}, "names no block and no layer of this model"),
        ({"keep": "conf1"}, "Did you mean 'conv1'"),
        ({"layers": "conv1"}, "--layers conv1: conv1 takes the image's channels"),
        ({"amount": 0.999}, "factorising cannot remove 100% of the MACs"),
        ({"importance": "l1"}, "--importance has no use with --method factorise"),
        ({"amount": 0.5, "energy": 0.9}, "--amount beside --energy"),
        ({"amount": 0.5, "max_drop": "1%"}, "--amount beside a search"),
        ({"step": 0.2}, "--step without a search"),
        ({"epochs": 0, "lr": 0.1}, "--lr with --epochs 0"),
        ({"max_drop": "5ms"}, "--max-drop: '5ms' is not understood; write 1%"),
        ({"target_latency": "5"}, "write 5ms"),
        ({"target_size": "2ms"}, "write 2MB"),
        ({"target_macs": "-3"}, "write 30M"),
        ({"data": "nowhere"}, "--data nowhere: .* is a run, and has its own"),
        ({"amont": 0.3}, "unknown setting 'amont'"),
    ],
)
def test_bad_settings_are_refused(original: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.compress(original, method="factorise", device="cpu", **given)
    assert not list(Path(original).parent.glob("*-factorise*"))


def test_optimizers_that_move_zeros_are_refused(original: str, tmp_path: Path) -> None:
    made = api.compress(original, method="sparse", epochs=0, output_dir=str(tmp_path / "out"), device="cpu")
    with pytest.raises(
        UserError, match="--optimizer muon moves weights that the model's recipe keeps at zero"
    ):
        api.finetune(
            made.run, Run(Path(made.run)).resolved["data"]["path"], optimizer="muon", epochs=1, device="cpu",
            output_dir=str(tmp_path / "tuned"),
        )  # fmt: skip


def test_values_are_read_as_they_are_written() -> None:
    found = CompressConfig(max_drop="1%", target_latency="5ms", target_size="2MB", target_macs="30M")
    assert (found.max_drop, found.target_latency, found.target_size, found.target_macs) == (
        0.01,
        0.005,
        2e6,
        3e7,
    )
    again = CompressConfig(**json.loads(found.model_dump_json()))
    assert again == found
