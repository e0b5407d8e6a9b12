"""Results in a notebook: text escaped, pictures inside, and every verb's result among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from IPython.core.formatters import DisplayFormatter

import warmstart as ws
from warmstart.shown import Shown


class Said(Shown):
    def __init__(self, *pictures: Path) -> None:
        self._pictures = list(pictures)

    def text(self) -> str:
        return "<script> & 5 > 4"

    @property
    def pictures(self) -> list[Path]:
        return self._pictures


def test_text_is_escaped_and_pictures_are_part_of_the_page(tmp_path: Path) -> None:
    picture = tmp_path / "a&b.png"
    picture.write_bytes(b"png")
    html = Said(picture, tmp_path / "deleted.png")._repr_html_()
    assert html.startswith("<pre>&lt;script&gt; &amp; 5 &gt; 4</pre>")
    assert html.count("<img") == 1 and 'alt="a&amp;b"' in html and "data:image/png;base64,cG5n" in html


@pytest.fixture(scope="module")
def run(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> ws.api.FinetuneResult:
    folder = tmp_path_factory.mktemp("shown") / "run"
    return ws.finetune(
        "builtin:fashion_cnn",
        str(overlapping),
        weights="none",
        image_size="16",
        max_steps=2,
        tensorboard=False,
        output_dir=str(folder),
        device="cpu",
    )


def test_every_verb_gives_what_a_notebook_can_show(run, overlapping: Path) -> None:
    results = {
        "finetune": (run, 1),
        "check": (ws.check(run.run, str(overlapping), device="cpu"), 0),
        "evaluate": (ws.evaluate(run.run, device="cpu"), 4),
        "predict": (ws.predict(run.run, [str(overlapping / "ant")], device="cpu"), 0),
        "runs": (ws.runs(str(Path(run.run).parent)), 0),
        "show": (ws.show(run.run), 1),
        "gain": (run.gains[-1], 0),
    }
    for verb, (result, num_pictures) in results.items():
        assert isinstance(result, Shown), verb
        shown, _ = DisplayFormatter().format(result)
        page = shown["text/html"]
        assert shown["text/plain"] == result.text(), verb
        assert page.startswith("<pre>") and len(result.text()) > 20, verb
        assert page.count("<img") == num_pictures, verb


def test_show_and_runs_stay_what_json_prints(run) -> None:
    info = ws.show(run.run)
    assert json.loads(json.dumps(info))["best"]["step"] == info["best"]["step"]
    assert isinstance(info, dict) and isinstance(ws.runs(str(Path(run.run).parent)), list)
    assert "analysis.png" in info.text()
