"""The notebook is run from beginning to end by a kernel of its own; its Chinese twin has the same code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = [DOCS / "notebooks" / "first-steps.ipynb", DOCS / "zh" / "notebooks" / "first-steps.ipynb"]


def code(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_the_chinese_notebook_has_the_same_code_and_neither_has_outputs() -> None:
    english, chinese = (code(nbformat.read(path, as_version=4)) for path in NOTEBOOKS)
    assert {name: cell.source for name, cell in english.items()} == {n: c.source for n, c in chinese.items()}
    assert not any(cell.outputs for cell in (*english.values(), *chinese.values()))


@pytest.mark.filterwarnings("default")  # of the kernel's client, none of ours
def test_the_notebook_runs_and_its_results_show_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    began = time.monotonic()
    NotebookClient(notebook, timeout=200, kernel_name="python3").execute(cwd=str(tmp_path))
    print(f"{time.monotonic() - began:.1f} s")
    pages = {}
    for name, cell in code(notebook).items():
        shown = [output.data for output in cell.outputs if output.output_type == "execute_result"]
        assert len(shown) == 1, f"{name} shows no result"
        pages[name] = shown[0].get("text/html", "")
    pictures = {name: page.count("<img") for name, page in pages.items()}
    expected = {"start": 1, "tune": 1, "evaluate": 3, "show": 1}
    assert {name: num for name, num in pictures.items() if num} == expected
    assert "better than the start" in pages["tune"]
    assert all(page.startswith("<pre>") for name, page in pages.items() if name != "data")
