"""`warmstart compress` where it ends early, goes on, is refused, or meets what it did not expect."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from warmstart import api
from warmstart.analysis.paired import Change
from warmstart.config.compress_section import CompressConfig
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.methods.compress import flow, graphs
from warmstart.methods.compress.beginning import begin, leave_no_trace
from warmstart.methods.compress.point import Point
from warmstart.methods.compress.recovery import recovery_config
from warmstart.methods.compress.search import chosen, next_amount, within
from warmstart.methods.compress.subject import open_subject
from warmstart.records import finite
from warmstart.run import writer
from warmstart.verbs.compressing import settings_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def searched(original: str, tmp_path_factory: pytest.TempPathFactory) -> flow.Compressed:
    """A search for a tenth of a per cent of the MACs, which no method can reach."""
    out = tmp_path_factory.mktemp("searched") / "out"
    return api.compress(
        original, method="factorise", target_macs=0.001, step=0.3, epochs=0, output_dir=str(out), device="cpu"
    )


def test_a_search_that_cannot_go_further_keeps_its_best_round(searched: flow.Compressed) -> None:
    assert len(searched.points) > 1
    assert searched.chosen == len(searched.points) - 1
    assert "the best found, which does not meet --target-macs; no further round: factorising" in searched.why
    assert "no further round" in searched.text()


def test_the_first_round_of_a_search_must_be_possible(original: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="factorising cannot remove"):
        api.compress(
            original, method="factorise", max_drop="50%", step=0.99, epochs=0, device="cpu",
            output_dir=str(tmp_path / "out"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_what_was_made_smaller_has_no_state_to_keep(searched: flow.Compressed) -> None:
    with pytest.raises(UserError, match="was made smaller, without optimizer state"):
        api.continue_run(searched.run, keep="all")


def splits_of_rows(run: Path) -> list[str]:
    return [json.loads(line)["split"] for line in (run / "evals.jsonl").read_text().splitlines()]


def test_a_file_goes_on_with_itself_only(original: str, overlapping: Path, tmp_path: Path) -> None:
    file, other, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out"
    shutil.copy(restore(original, CPU).reference.file, file)
    shutil.copy(file, other)
    given = {"method": "factorise", "epochs": 0, "data": str(overlapping), "device": "cpu"}
    with pytest.raises(UserError, match="factorising cannot remove 100%"):
        api.compress(str(file), amount=0.999, output_dir=str(out), **given)
    api.compress(str(file), amount=0.3, output_dir=str(out), **given)  # nothing of the refused one is left
    rows = splits_of_rows(out)
    (out / "compression.json").unlink()
    api.resume(str(out))
    assert splits_of_rows(out) == rows
    (out / "compression.json").unlink()
    with pytest.raises(UserError, match=r"holds a compression of another model: .*a\.safetensors"):
        api.compress(str(other), amount=0.3, output_dir=str(out), **given)
    again = restore(original, CPU)
    with torch.no_grad():
        next(again.built.module.parameters()).add_(1)
    save_file(again.built.module.state_dict(), file)
    with pytest.raises(UserError, match=r"another model: .* has changed since it began"):
        api.resume(str(out))


def test_a_folder_in_use_is_left_as_it_is(original: str, overlapping: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", str(tmp_path / "a.safetensors")
    shutil.copy(restore(original, CPU).reference.file, file)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is in use"):
        api.compress(file, epochs=0, data=str(overlapping), output_dir=str(out), device="cpu")
    for dry_run in (False, True):
        with pytest.raises(UserError, match="is in use"):
            api.compress(original, epochs=0, output_dir=str(out), device="cpu", dry_run=dry_run)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_what_had_made_nothing_does_not_block_another(tmp_path: Path) -> None:
    out, model = tmp_path / "out", str(tmp_path / "run")
    assert begin(out, model, CompressConfig(amount=0.3))
    assert begin(out, model, CompressConfig(amount=0.4))  # killed before
    (out / "rounds" / "01-edited").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--amount was 0\.4"):
        begin(out, model, CompressConfig(amount=0.3))
    assert not begin(out, model, CompressConfig(amount=0.4))
    (out / "rounds" / "01.json").touch()
    leave_no_trace(out)
    assert out.exists()
    (out / "rounds" / "01.json").unlink()
    leave_no_trace(out)
    assert not out.exists()


def test_the_rate_of_the_recovery_falls(original: str, tmp_path: Path) -> None:
    subject = open_subject(original, CompressConfig(lr=3e-4), CPU)
    optim = recovery_config(subject, original, tmp_path / "out").optim
    assert (optim.lr, optim.min_lr) == pytest.approx((3e-4, 1e-4))  # a third of it, as in the run


def test_a_recovery_keeps_the_rules_of_any_training(original: str, tmp_path: Path) -> None:
    """A run's config.yaml can be edited."""
    run = tmp_path / "run"
    shutil.copytree(original, run)
    text = (run / "config.yaml").read_text()
    assert "  train_ratio: 0.6" in text
    (run / "config.yaml").write_text(text.replace("  train_ratio: 0.6", "  train_ratio: 0.9"))
    with pytest.raises(UserError, match=r"--train-ratio 0\.9 and --val-ratio 0\.2 add up to more than 1"):
        api.compress(str(run), method="factorise", epochs=1, device="cpu", output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_beyond_the_goal_the_steps_are_small(searched: flow.Compressed) -> None:
    first = searched.points[0]
    settings = CompressConfig(target_macs=0.5, step=0.3)

    def after(removed: float, macs: float) -> Point:
        return replace(first, removed=removed, cost=replace(first.cost, macs=round(macs * first.cost.macs)))

    assert next_amount(settings, [first, after(0.3, 0.7)]) == 0.5
    assert next_amount(settings, [first, after(0.3, 0.7), after(0.5, 0.51)]) == 0.52
    features = settings.model_copy(update={"scope": "embedding"})
    assert next_amount(features, [first, after(0.3, 0.9)]) == 0.6  # a share of MACs says nothing of features
    tenths = CompressConfig(max_drop="1%", step=0.1, max_rounds=99)
    assert next_amount(tenths, [after(n / 10, 1) for n in range(10)]) is None


def test_a_change_that_is_no_number_is_read_again(searched: flow.Compressed) -> None:
    change = Change("map", math.nan, math.nan, math.nan, 0, 0, 1.0)
    point = replace(searched.points[1], change=change, metrics={**searched.points[1].metrics, "x": math.nan})
    again = Point.from_json(json.loads(json.dumps(finite(point.to_json()))))
    settings = CompressConfig(max_drop="1%")
    assert not within(settings, again)
    assert math.isnan(again.metrics["x"])
    assert chosen(settings, [searched.points[0], again])[0] == 1


def test_a_run_that_goes_on_is_not_compressed(
    original: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(original, run)
    writer.write_status(run, "running", step=3)  # by this process, which is alive
    with pytest.raises(UserError, match="is still being trained"):
        api.compress(str(run), method="sparse", epochs=0, device="cpu", output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    api.evaluate(str(run), split="val", device="cpu")
    assert "is running: as far as it has come, step" in capsys.readouterr().err


def test_a_target_that_is_met_is_refused(original: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="meets the target as it is"):
        api.compress(
            original, method="factorise", target_size="1GB", epochs=0, device="cpu", output_dir=str(tmp_path / "o")
        )  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_a_trained_model_is_kept_without_its_graph(
    original: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmstart.methods.export.parity._LEAST_OF_STEPS", 2.0)  # more than all images
    made = api.compress(
        original, method="qat", epochs=0, calibration=10, output_dir=str(tmp_path / "out"), device="cpu"
    )
    assert [point.name for point in made.points] == ["original", "round 1"]
    assert "no graph in int8: onnx of" in made.text()
    assert (tmp_path / "out" / "compression.json").exists()
    assert not (tmp_path / "out" / graphs.INT8).exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "sparse", "target_macs": 0.5}, "--target-macs with --method sparse"),
        ({"method": "sparse", "target_size": "2MB"}, "--target-size with --method sparse"),
        ({"max_drop": "1"}, "--max-drop: '1' is not understood; write 1% or .01"),
        ({"max_drop": 1.0}, "--max-drop: 1.0 is not understood"),
        ({"target_latency": -1.0}, "--target-latency: -1.0 is not understood; write 5ms"),
        ({"target_latency": math.nan}, "--target-latency: nan is not understood"),
        ({"target_size": math.inf}, "--target-size: inf is not understood"),
        ({"importance": "l1", "calibration": 9}, "--calibration has no use with --importance l1"),
        ({"method": "int8", "seed": 1}, "--seed has no use with --method int8"),
    ],
)
def test_settings_without_a_meaning_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(given)


@pytest.mark.parametrize(
    ("method", "package"), [("prune", "torch_pruning"), ("int8", "onnxruntime"), ("qat", "onnxscript")]
)
def test_a_package_that_is_missing_is_told_before_anything_is_trained(
    method: str, package: str, original: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=f"needs {package.replace('_', '-')}, which is not installed"):
        api.compress(original, method=method, output_dir=str(tmp_path / "out"), device="cpu")
    assert not (tmp_path / "out").exists()
