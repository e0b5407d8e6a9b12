"""The page of real runs and comparisons: what stands on it, what does not, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import warmstart as ws
from warmstart.errors import UserError
from warmstart.run import layout, writer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, into which pages may be written."""
    return Path(shutil.copytree(small_run, tmp_path_factory.mktemp("report") / "run"))


def text_of(path: str | Path) -> str:
    return Path(path).read_text(encoding="utf-8")


def anchors(page: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)">', page)


def test_a_page_is_one_file_that_asks_nothing_of_the_network(run: Path) -> None:
    found = ws.report(str(run))
    page = text_of(found.path)
    assert found.path == str(run / "report.html") and found.kind == "run"
    assert "://" not in page and "<script" not in page and "default-src 'none'" in page
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', page)
    wanted = {
        "curves",
        "diagnosis",
        "metrics",
        "by_class",
        "confusion",
        "plan",
        "dataset",
        "environment",
        "reproduce",
    }
    assert wanted <= set(anchors(page))
    assert page.index('id="verdict"') < page.index('id="curves"')
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_its_numbers_are_those_of_the_run(run: Path) -> None:
    page = text_of(ws.report(str(run)).path)
    gain = json.loads((run / layout.GAINS).read_text())[-1]
    after, before = gain["best"]["accuracy"], gain["start"]["accuracy"]
    assert f"accuracy {before:.3f} → {after:.3f} on test." in page
    table = page[page.index('id="metrics"') : page.index('id="by_class"')]
    assert f">{gain['best']['loss']:.4f}<" in table and f">{gain['start']['loss']:.4f}<" in table
    plan = json.loads((run / layout.PLAN).read_text())["rows"]
    blocks = page[page.index('id="plan"') : page.index('id="dataset"')]
    assert [row["name"] for row in plan] == re.findall(r'<tr>\s*<td class="left">([\w.]+)</td>', blocks)


def test_chinese_holds_the_same_sections_and_numbers(run: Path, tmp_path: Path) -> None:
    pages = [
        text_of(ws.report(str(run), lang=lang, output=str(tmp_path / f"{lang}.html")).path)
        for lang in ("en", "zh")
    ]
    assert anchors(pages[0]) == anchors(pages[1])
    charts = [re.findall(r'<path class="line[^>]*>', page) for page in pages]
    assert charts[0] == charts[1] and charts[0]
    assert 'lang="zh-CN"' in pages[1] and "训练计划" in pages[1] and "训练计划" not in pages[0]


def test_without_images_no_pixel_of_the_data_is_in_it(run: Path, tmp_path: Path) -> None:
    found = ws.report(str(run), images=False, output=str(tmp_path / "bare.html"))
    assert "data:image" not in text_of(found.path)
    assert any("Worst errors" in line for line in found.left_out)


def test_images_that_are_gone_are_said(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    resolved = json.loads((run / layout.RESOLVED).read_text())
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    resolved["data"]["path"] = str(tmp_path / "nowhere")
    writer.write_json(moved / layout.RESOLVED, resolved)
    found = ws.report(str(moved))
    assert any("not to be had" in line for line in found.left_out) and "data:image" not in text_of(found.path)


def test_names_are_text_and_never_markup(run: Path, tmp_path: Path) -> None:
    evil = Path(shutil.copytree(run, tmp_path / "<b>run"))
    for file in [*evil.glob("evaluations/test@*/*"), evil / layout.RESOLVED]:
        if file.suffix in (".json", ".csv"):
            content = file.read_text(encoding="utf-8").replace("owl", "<img src=x onerror=alert(1)>")
            file.write_text(content, encoding="utf-8")
    page = text_of(ws.report(str(evil)).path)
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page and "<b>run" not in page


def test_a_run_in_progress_says_so_far(run: Path, tmp_path: Path) -> None:
    going = Path(shutil.copytree(run, tmp_path / "going"))
    shutil.rmtree(going / "evaluations")
    (going / layout.GAINS).unlink()
    writer.write_status(going, "running", step=3)
    found = ws.report(str(going))
    page = text_of(found.path)
    assert found.verdict.startswith("So far: best accuracy") and "The run is running" in page
    assert any("not evaluated" in line for line in found.left_out) and "by_class" not in anchors(page)
    assert {"curves", "plan", "dataset"} <= set(anchors(page))


def test_notes_of_the_diagnosis_are_on_the_page(run: Path, tmp_path: Path) -> None:
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    with (cut / layout.EVALS).open("a", encoding="utf-8") as rows:
        rows.write("[]\n")
    page = text_of(ws.report(str(cut), images=False).path)
    assert "1 damaged rows were skipped" in page[page.index('id="diagnosis"') : page.index('id="metrics"')]


def test_a_run_without_a_row_has_a_page(run: Path, tmp_path: Path) -> None:
    fresh = Path(shutil.copytree(run, tmp_path / "fresh"))
    for name in ("evaluations", "checkpoints", "predictions"):
        shutil.rmtree(fresh / name)
    for name in (layout.GAINS, layout.EVALS, layout.METRICS):
        (fresh / name).unlink()
    writer.write_status(fresh, "running")
    found = ws.report(str(fresh))
    assert found.verdict == "Nothing was measured yet." and "plan" in anchors(text_of(found.path))


def test_a_comparison_has_a_page(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    compared = ws.compare([f"{run}@0", str(run)], split="test", output_dir=str(folder), device="cpu")
    found = ws.report(str(folder))
    page = text_of(found.path)
    assert found.path == str(folder / "report.html") and found.kind == "comparison"
    row = compared.main
    assert f"{row.first:.3f} → {row.second:.3f}" in page and {"metrics", "classes"} <= set(anchors(page))
    assert text_of(ws.report(str(folder / "comparison.json"), lang="zh").path).count("B") > 3


def test_several_runs_have_a_page(run: Path, tmp_path: Path) -> None:
    others = [str(shutil.copytree(run, tmp_path / name)) for name in ("b", "c")]
    ws.compare([str(run), *others], output_dir=str(tmp_path / "table"))
    page = text_of(ws.report(str(tmp_path / "table")).path)
    assert "Best of 3 on val" in page and page.count('class="line of') >= 3


def test_a_sweep_has_a_page(run: Path, tmp_path: Path) -> None:
    """By the record that `sweep` writes, whose runs are there, moved with the folder, or gone."""
    values = [{"lr": "0.00123456"}, {"lr": "0.01"}, {"lr": "0.1"}]
    states = [("finished", 0.5), ("stopped", 0.25), ("waiting", None)]
    trials = [
        {
            **{"number": number, "state": state, "values": values[number], "value": value, "best_step": 4},
            **{"step": 8 - 4 * number, "total_steps": 8, "seconds": 2.0, "run": None, "reason": ""},
        }
        for number, (state, value) in enumerate(states)
    ]
    shutil.copytree(run, tmp_path / "sweep" / "trials" / "0000")
    trials[0]["run"] = "/elsewhere/sweep/trials/0000"
    record = {
        **{
            "format": 1,
            "finished": False,
            "folder": "sweep",
            "metric": "accuracy",
            "method": "grid",
            "prune": "none",
        },
        **{
            "seed": 0,
            "base": "base.yaml",
            "space": {"lr": ".001..1:log"},
            "storage": "sweep.db",
            "trials": trials,
        },
        **{"best": 0, "importance": {"lr": 1.0}, "notes": ["<i>a note"]},
    }
    writer.write_json(tmp_path / "sweep" / layout.SWEEP, record)
    found = ws.report(str(tmp_path / "sweep"))
    page = text_of(found.path)
    assert (
        found.verdict == "Best of 2: trial 0 with lr 0.001235, accuracy 0.500 on val."
        and found.kind == "sweep"
    )
    assert (
        "chosen among 2 on val" in page
        and "after 4 of their 8 steps" in page
        and "Trials that are not over: 1." in page
    )
    assert anchors(page) == ["trials", "curves", "importance", "space", "notes", "reproduce"]
    assert "&lt;i&gt;a note" in page and "warmstart sweep" in page
    assert ws.report(str(tmp_path / "sweep" / layout.SWEEP), lang="zh").language == "zh"
    assert "asked of nobody else" in page, "its test was measured"
    shutil.rmtree(tmp_path / "sweep" / "trials")
    page = text_of(ws.report(str(tmp_path / "sweep")).path)
    assert "asked of nobody else" not in page and "too kind" in page
    writer.write_json(tmp_path / "sweep" / layout.SWEEP, {**record, "best": None, "trials": trials[2:]})
    assert ws.report(str(tmp_path / "sweep")).verdict == "No trial has come to its end yet."
    writer.write_json(tmp_path / "sweep" / layout.SWEEP, {"trials": []})
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(tmp_path / "sweep"))


def test_what_is_no_page_of_ours_is_not_lost(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="no report of ours"):
        ws.report(str(run), output=str(mine))
    assert mine.read_text() == "<p>mine</p>"
    first = ws.report(str(run), output=str(tmp_path / "page.html"))
    assert ws.report(str(run), output=first.path).path == first.path, "a page may be written again"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nothing", {}, "does not exist"),
        ("RUN@0", {}, "one step of a run"),
        ("RUN", {"lang": "de"}, "--lang de"),
        ("RUN", {"output": "no/such/page.html"}, "folder that does not exist"),
    ],
)
def test_bad_requests(run: Path, target: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ws.report(target.replace("RUN", str(run)), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content"), [("comparison.json", "{"), ("comparison.json", '{"question": "models"}')]
)
def test_damaged_comparisons(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(tmp_path))


def test_damaged_evaluations(run: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    for file in broken.glob("evaluations/test@*/confusion.csv"):
        file.write_text("a,b\n1")
    with pytest.raises(UserError, match="damaged"):
        ws.report(str(broken))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_browser_draws_it_without_a_complaint(run: Path, tmp_path: Path, lang: str) -> None:
    """Nothing in the console (a blocked request would stand there), and a picture that is not blank."""
    page = ws.report(str(run), lang=lang, output=str(tmp_path / "page.html")).path
    shot = tmp_path / "page.png"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
    ]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1280,2000", "--hide-scrollbars", f"--screenshot={shot}", f"file://{page}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    assert "CONSOLE" not in done.stderr and "Refused to" not in done.stderr, done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1280 and pixels.std() > 10
    washes = {
        "good": (233, 246, 240),
        "bad": (252, 239, 237),
        "unsure": (253, 245, 227),
        "plain": (243, 245, 247),
    }
    tone = re.findall(r'class="verdict (\w+)"', text_of(page))[0]
    has_wash = (np.abs(pixels[:400] - washes[tone]).max(axis=2) < 3).mean()
    assert has_wash > 0.1, "the verdict stands on its colour, at the top"
