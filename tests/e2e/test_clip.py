"""Image-text models from the command line, on a CLIP that knows coloured shapes a little: tests/conftest.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import HELD_OUT

import fresh
from warmstart import console
from warmstart.cli import main
from warmstart.config.io import load
from warmstart.engine import train
from warmstart.errors import Interrupted, UserError
from warmstart.inference.restore import restore
from warmstart.run import layout
from warmstart.run.reader import Run

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {
    **{"batch_size": 8, "epochs": 2, "lr": 1e-4, "augment": "none", "workers": 0, "device": "cpu"},
    **{"tensorboard": False, "pictures": False, "log_every": "1steps"},
}


def settings(place: Path, folder: Path, **given: Any) -> dict[str, Any]:
    own = {"model": f"hf:{place / 'clip'}", "data": str(place / "data"), "output_dir": str(folder)}
    return {**own, **SETTINGS, **given}


def finetune(place: Path, folder: Path, **given: Any) -> Run:
    console.setup()
    return Run(train.finetune(load(settings(place, folder, **given))))


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_untuned_model_answers_by_the_names_of_the_classes(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"hf:{tiny_clip / 'clip'}", "--data", str(tiny_clip / "data"), "--zero-shot"]
    test = answer(capsys, *words, "--output-dir", str(tmp_path / "files"))
    metrics = test["metrics"]
    assert test["split"] == "test" and metrics["accuracy_low"] > 0.2, "ten classes that it never saw"
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert {"predictions.parquet", "confusion.csv", "evaluation_results.json"} <= {
        p.name for p in (tmp_path / "files").iterdir()
    }

    val = answer(capsys, *words, "--split", "val")["metrics"]
    run = finetune(tiny_clip, tmp_path / "run", **{"text.head": "zero-shot"})
    start = next(row for row in run.evals.rows if row["split"] == "val")
    assert (start["step"], start["accuracy"]) == (0, val["accuracy"])
    assert start["loss"] == pytest.approx(val["loss"], rel=1e-5)
    assert run.resolved["model"]["head"]["kind"] == "kept"
    assert (
        "the text tower is dropped; the classifier starts from embeddings of 10 texts"
        in run.plan["remarks"][0]
    )
    best = max(row["accuracy"] for row in run.evals.rows if row["split"] == "val")
    assert best >= start["accuracy"], "step 0 may be the best"

    model = f"hf:{tiny_clip / 'clip'}"
    assert test["zero_shot"] == {"model": f"{model}#zero-shot", "prompts": ["a photo of a {}."]}
    assert (
        json.loads((tmp_path / "files" / "evaluation_results.json").read_text())["zero_shot"]
        == test["zero_shot"]
    )
    report = (tmp_path / "files" / "evaluation_report.txt").read_text()
    assert ", zero-shot by the prompts 'a photo of a {}.', on test of" in report.splitlines()[0]
    assert "mislabelled to a model that no training has shown these classes" in report

    both = answer(capsys, *words, "--text.prompts", "a photo of a {}.;a drawing of a {}.")
    assert both["metrics"]["loss"] != metrics["loss"] and len(both["zero_shot"]["prompts"]) == 2
    names = sorted({path.parent.name for path in (tiny_clip / "data").rglob("*.png")})
    texts = {name: [f"a {number}th thing", name] for number, name in enumerate(names)}
    (tmp_path / "all.json").write_text(json.dumps(texts))
    assert (
        answer(capsys, *words, "--text.prompts", str(tmp_path / "all.json"))["zero_shot"]["prompts"] == texts
    )
    assert answer(capsys, "evaluate", str(run.path))["zero_shot"] is None
    (tmp_path / "p.json").write_text(json.dumps({"red_circle": "a photo of a red circle.", "dog": "a dog"}))
    told = refusal(capsys, *words, "--text.prompts", str(tmp_path / "p.json"))
    assert "has prompts for 'dog', which the data have not" in told
    assert "--text.prompts without --zero-shot" in refusal(capsys, *words[:-1], "--text.prompts", "a {}")


@pytest.mark.parametrize("tower", ["trained", "frozen"])
def test_contrastive_tuning(tower: str, tiny_clip: Path, tmp_path: Path) -> None:
    given = {"text.head": "contrastive", "text.tower": tower, "lrs": "text=1e-5", "lr": 1e-4, "epochs": 3}
    if tower == "frozen":
        given.pop("lrs")
    run = finetune(tiny_clip, tmp_path / "run", **given)
    rows = {row["name"]: row for row in run.plan["rows"]}
    text = [row for name, row in rows.items() if name.startswith("text_")]
    assert {row["mode"] for row in text} == {"frozen" if tower == "frozen" else "full"}
    assert {row["lr"] for row in text} == {0.0 if tower == "frozen" else 1e-5}
    start = load_file(tiny_clip / "clip" / "model.safetensors")
    best = run.pointer(layout.LAST)
    assert best is not None
    end = load_file(run.checkpoint(best) / layout.MODEL)
    moved = {name: not torch.equal(tensor, end[name]) for name, tensor in start.items() if name in end}
    assert len(moved) == len(start) - 1, "all but the scale, which is the head's"
    assert moved["vision_model.encoder.layers.2.mlp.fc1.weight"] and not torch.equal(
        start["logit_scale"], end["classifier.logit_scale"]
    )
    assert {moved[name] for name in moved if name.startswith("text_")} == {tower == "trained"}
    first, *_, last = [row["loss"] for row in run.evals.rows if row["split"] == "train"]
    assert last < first
    assert "the loss compares the images of a batch of 8" in run.plan["remarks"][1]


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({}, "trained;"),
        ({"text.tower": "frozen"}, "frozen, and runs once for all batches;"),
        ({"freeze": "text"}, "frozen, and runs once for all batches;"),
        ({"freeze": "backbone"}, "frozen, and runs once for all batches;"),
        ({"text.tower": "frozen", "text.captions": "caption"}, "frozen;"),
        ({"freeze": "text_model.embeddings"}, "trained (in 3 of 4 blocks);"),
        ({"unfreeze": "0:head,1:all"}, "trained, at first frozen;"),
        ({"lora.rank": 2}, "frozen but for its adapters (in 2 of 4 blocks);"),
    ],
)
def test_the_plan_says_of_the_text_tower_what_its_rows_do(
    given: dict[str, Any], state: str, tiny_clip: Path, captioned: Path, tmp_path: Path
) -> None:
    data = {"data": str(captioned)} if "text.captions" in given else {}
    loaded = load(settings(tiny_clip, tmp_path / "run", **{"text.head": "contrastive"}, **data, **given))
    plan = train.dry_run(loaded)[0].job.plan
    text = [(row.name, row.mode, row.from_stage) for row in plan.rows if row.name.startswith("text_")]
    assert plan.remarks[0].startswith(f"the text tower is {state}"), (plan.remarks[0], text)


def test_advice_keeps_the_batch_of_a_contrastive_head(
    tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory suffices for nothing, and yet nothing with fewer images at once is tried."""
    model = ("--model", f"hf:{tiny_clip / 'clip'}", "--text.head", "contrastive", "--device", "cpu")
    found = answer(capsys, "advise", str(tiny_clip / "data"), *model, "--device-memory", ".001GB")
    assert {(trial["batch_size"], trial["accumulate"]) for trial in found["trials"]} == {(32, 1)}
    assert not found["fits"] and any(trial["checkpointing"] for trial in found["trials"])
    assert any(note["rule"] == "warn.negatives" for note in found["warnings"])


@pytest.mark.parametrize("texts", ["class prompts", "captions"])
def test_a_contrastive_run_is_resumed_to_the_bit(
    texts: str, tiny_clip: Path, captioned: Path, tmp_path: Path, interrupt_at: Callable[..., None]
) -> None:
    """Without the folder of the model, whose tokenizer the run has kept."""
    place = tmp_path / "place"
    shutil.copytree(tiny_clip / "clip", place / "clip")
    data = str(captioned if texts == "captions" else tiny_clip / "data")
    given = {"text.head": "contrastive", "data": data, "epochs": 1, "eval_every": "5steps"}
    given |= {"text.captions": "caption"} if texts == "captions" else {"text.prompts": "a {};one {}"}
    straight = finetune(place, tmp_path / "straight", **given)
    interrupt_at(2)
    with pytest.raises(Interrupted):
        finetune(place, tmp_path / "stopped", **given)
    shutil.rmtree(place)
    stopped = Run(train.resume(str(tmp_path / "stopped"), {}))
    found, expected = (
        load_file(run.checkpoint(run.pointer(layout.LAST) or 0) / layout.MODEL) for run in (stopped, straight)
    )
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert [row["loss"] for row in stopped.evals.rows if "loss" in row] == [
        row["loss"] for row in straight.evals.rows if "loss" in row
    ]


def test_kept_features_serve_the_rows_of_texts(tiny_clip: Path, tmp_path: Path) -> None:
    given = {"text.head": "zero-shot", "freeze": "backbone", "lr": 1e-2, "cache_dir": str(tmp_path / "cache")}
    runs = [finetune(tiny_clip, tmp_path / cache, **given, feature_cache=cache) for cache in ("on", "off")]
    assert runs[0].resolved["features"]["cut"]["first"] == "classifier"
    rows = [[row["loss"] for row in run.evals.rows if row["split"] == "val"] for run in runs]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4) and rows[0][0] != rows[0][-1]


ELSEWHERE = """
import contextlib, io, json, sys
from warmstart import console
from warmstart.cli import main

for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--json"])
    print(json.dumps([code, json.loads(out.getvalue() or "null")]))
"""


def test_a_run_needs_the_folder_no_more(tiny_clip: Path, tmp_path: Path) -> None:
    """In a fresh process, without the folder: evaluate, predict, zero-shot with other prompts, continue, finetune."""
    place = tmp_path / "place"
    shutil.copytree(tiny_clip / "clip", place / "clip")
    shutil.copytree(tiny_clip / "data", place / "data")
    heads, runs = ("linear", "zero-shot", "contrastive"), {}
    for head in heads:
        runs[head] = finetune(
            place, tmp_path / head, **{"text.head": head, "text.prompts": None, "epochs": 1}
        )
        kept = {path.name for path in (runs[head].path / layout.PROCESSOR).iterdir()}
        assert {"processor_config.json", "tokenizer.json", "tokenizer_config.json"} <= kept
    from transformers import CLIPProcessor

    assert CLIPProcessor.from_pretrained(tmp_path / "contrastive" / layout.PROCESSOR).tokenizer("a ring")
    shutil.rmtree(place / "clip")
    image = str(next((place / "data" / "test" / "red_circle").iterdir()))
    steps = [["evaluate", str(runs[head].path), "--split", "val"] for head in heads]
    both = str(runs["contrastive"].path)
    steps += [
        ["predict", both, image],
        ["evaluate", both, "--zero-shot", "--text.prompts", "a drawing of a {}.", "--data", str(place / "data")],
        ["continue", both, "--epochs", "2", "--output-dir", str(tmp_path / "child")],
        ["finetune", "--weights", both, "--data", str(place / "data"), "--output-dir", str(tmp_path / "again"),
         "--epochs", "1", "--text.prompts", "the {}", "--no-tensorboard", "--no-pictures"],
    ]  # fmt: skip
    done = fresh.run(json.dumps(steps), code=ELSEWHERE)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in answers] == [0] * len(steps), done.stderr
    for head, (_, found) in zip(heads, answers, strict=False):
        recorded = [row for row in runs[head].evals.rows if row["split"] == "val" and "kind" not in row]
        best = Run(runs[head].path).status["best_step"]
        expected = next(row["loss"] for row in recorded if row["step"] == best)
        assert found["metrics"]["loss"] == expected, f"{head}: to the bit"
    assert "tokenizer.json" in {path.name for path in (tmp_path / "again" / layout.PROCESSOR).iterdir()}


@pytest.mark.parametrize("head", ["zero-shot", "contrastive"])
def test_a_blend_with_the_untuned_model(
    head: str, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WiSE-FT: alpha 0 is what the run's step 0 was, from the folder by name or as the run's own start."""
    run = finetune(tiny_clip, tmp_path / "run", **{"text.head": head, "text.prompts": "a {};one {}"})
    first, *_, last = [row[run.resolved["select_by"]] for row in run.evals.rows if row["split"] == "val"]
    tuned = f"{run.path}@last"
    for number, models in enumerate(([f"hf:{tiny_clip / 'clip'}", tuned], [tuned])):
        mix = str(tmp_path / f"mix-{number}")
        found = answer(capsys, "blend", *models, "--alphas", "0,.5,1", "--output-dir", mix, "--device", "cpu")
        points = found["points"]
        assert [point["alpha"] for point in points] == [0, 0.5, 1] and not found["kept"]
        assert (points[0]["val"], points[2]["val"]) == (first, last)
        again = answer(capsys, "evaluate", mix, "--split", "val")["metrics"]
        assert again["loss"] == Run(Path(mix)).evals.rows[0]["loss"]


def test_what_does_not_go_together(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contrastive = {"text.head": "contrastive"}
    for given, message in (
        ({**contrastive, "mixup": 0.5}, "compares whole images with texts"),
        ({**contrastive, "label_smoothing": 0.1}, "--label-smoothing 0.1 has no place"),
        ({**contrastive, "class_weights": "balanced"}, "--class-weights balanced has no place"),
        ({"text.prompts": "a {}"}, "prompts has no effect with the head linear"),
        ({"text.prompts": "absent.yaml", "text.head": "zero-shot"}, "absent.yaml does not exist"),
        ({**contrastive, "model": "builtin:fashion_cnn"}, "builtin:fashion_cnn has no text tower"),
    ):
        with pytest.raises(UserError, match=message):
            finetune(tiny_clip, tmp_path / "never", **given)
    run = finetune(tiny_clip, tmp_path / "run", max_steps=1)
    assert "any more: it was dropped" in refusal(capsys, "evaluate", str(run.path), "--zero-shot")
    with pytest.raises(UserError, match=r"has the head linear"):
        finetune(tiny_clip, tmp_path / "never", weights=str(run.path), **{"text.head": "zero-shot"})


@pytest.fixture(scope="module")
def captioned(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the pictures with a column of texts that name the classes, and one of texts that name others."""
    lines = ["image_path,label,split,caption,lie"]
    for number, path in enumerate(sorted((tiny_clip / "data").rglob("*.png"))):
        split, name = path.relative_to(tiny_clip / "data").parts[:2]
        lie = ("red", "blue")[number % 2]
        words = f"a photo of a {name.replace('_', ' ')}, number {number}"
        lines.append(f'{path},{name},{split},"{words}",a photo of a {lie} ring')
    table = tmp_path_factory.mktemp("captioned") / "table.csv"
    table.write_text("\n".join(lines))
    return table


def test_captions_are_texts_of_their_own(tiny_clip: Path, captioned: Path, tmp_path: Path) -> None:
    given = {"text.head": "contrastive", "data": str(captioned), "lr": 1e-3, "eval_every": "2epochs"}
    ends = {}
    for column, other in (("caption", "lie"), ("lie", "caption")):
        run = finetune(tiny_clip, tmp_path / column, **given, **{"text.captions": column})
        ends[column] = [row["loss"] for row in run.evals.rows if row["split"] == "val"][-1]
        assert f"each other's captions ({column})" in run.plan["remarks"][1]
        assert f"ignored the columns {other}\n" in (run.path / layout.LOG).read_text()
    assert ends["lie"] > 2 * ends["caption"]
    text = captioned.read_text().splitlines()
    row = next(number for number, line in enumerate(text) if ",train," in line)
    text[row] = text[row].replace("a photo of a", "").partition(',"')[0] + ",,"
    (tmp_path / "gap.csv").write_text("\n".join(text))
    for data, column, message in (
        (captioned, "note", r"text.captions note: table.csv has no such column"),
        (tiny_clip / "data", "caption", r"is no table"),
        (tmp_path / "gap.csv", "caption", r"1 training images have no text"),
    ):
        with pytest.raises(UserError, match=message):
            finetune(tiny_clip, tmp_path / "never", **{**given, "data": str(data), "text.captions": column})


@pytest.mark.parametrize("head", ["zero-shot", "contrastive"])
def test_low_rank_adapters_of_both_heads(head: str, tiny_clip: Path, tmp_path: Path) -> None:
    """Of a text tower that is frozen too nothing has an adapter; step 0 is zero-shot as without them."""
    given = {"text.head": head, "lora.rank": 4, "lr": 1e-3}
    given |= {"text.tower": "frozen"} if head == "contrastive" else {}
    run, plain = finetune(tiny_clip, tmp_path / "run", **given), finetune(
        tiny_clip, tmp_path / "plain", **{"text.head": head}, max_steps=1
    )  # fmt: skip
    modes = {row["name"]: row["mode"] for row in run.plan["rows"]}
    assert {modes[name] for name in modes if name.startswith("vision_model.encoder")} == {"lora"}
    assert {modes[name] for name in modes if name.startswith("text_")} <= {"frozen"}
    losses = [[row["loss"] for row in each.evals.rows if row["split"] == "val"] for each in (run, plain)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5) and losses[0][-1] < losses[0][0]
    restored = restore(str(run.path), torch.device("cpu"))
    assert restored.built.lora is not None and restored.built.classes == tuple(sorted(HELD_OUT))


def test_an_adapter_goes_on_the_folder_of_its_model_with_the_head_that_it_was_trained_with(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "text.head": "zero-shot",
        "lora.rank": 2,
        "lr": 3e-3,
        "epochs": 1,
        "save_as": str(tmp_path / "run.safetensors"),
    }
    run = finetune(tiny_clip, tmp_path / "run", **given)
    words = ["merge", str(run.path / layout.ADAPTER), "--base", f"hf:{tiny_clip / 'clip'}"]
    found = answer(capsys, *words, "--to", str(tmp_path / "merged.safetensors"))
    assert found["difference"] <= 1e-4 * found["largest_logit"]
    images = torch.randn(2, 3, 32, 32)
    one, other = (
        restore(str(tmp_path / name), torch.device("cpu")) for name in ("run", "merged.safetensors")
    )
    with torch.no_grad():
        torch.testing.assert_close(other.built.module(images), one.built.module(images), atol=1e-4, rtol=1e-4)


def test_captions_with_gradient_checkpointing(captioned: Path, tiny_clip: Path, tmp_path: Path) -> None:
    given = {"text.head": "contrastive", "data": str(captioned), "text.captions": "caption", "max_steps": 2}
    plain = finetune(tiny_clip, tmp_path / "plain", **given)
    checked = finetune(tiny_clip, tmp_path / "checked", gradient_checkpointing=True, **given)
    assert weights_of(plain) == weights_of(checked)


def weights_of(run: Run) -> bytes:
    step = run.pointer(layout.LAST)
    assert step is not None
    return (run.checkpoint(step) / layout.MODEL).read_bytes()
