"""Every command of the README and the guides is run; training is cut to one step on few real images."""

from __future__ import annotations

import gzip
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest

from warmstart.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images per class of fashion900 as IDX files: 8 to train, 3 to test."""
    source = ROOT.parent / "shared" / "data" / "fashion900"
    if not source.is_dir():
        pytest.skip(f"needs the real data in {source}")
    target = tmp_path_factory.mktemp("few")
    for split, number in (("train", 8), ("t10k", 3)):
        labels = np.frombuffer(
            gzip.decompress((source / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
        )
        raw = gzip.decompress((source / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:]
        images = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:number] for c in range(10)]))
        header = struct.pack(">IIII", 0x803, len(chosen), 28, 28)
        (target / f"{split}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(header + images[chosen].tobytes())
        )
        header = struct.pack(">II", 0x801, len(chosen))
        (target / f"{split}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(header + labels[chosen].tobytes())
        )
    return target


def commands(page: Path) -> list[list[str]]:
    """The `warmstart ...` lines of a page's bash blocks, as tokens."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("warmstart ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def filled_in(tokens: list[str], data: Path, weights: Path, picture: Path) -> list[str]:
    words = {"$WEIGHTS": str(weights), "WEIGHTS": str(weights), "$DATA": str(data), "DATA": str(data)}
    words["IMAGES"] = str(picture)
    result = []
    for token in tokens:
        flag, equals, value = token.partition("=")
        result.append(flag + equals + words.get(value, value) if equals else words.get(token, token))
    if result[0] == "finetune" and "--dry-run" not in result:
        result += ["--max-steps", "1"]
    return result


@pytest.mark.shared
@pytest.mark.parametrize("page", ["README.md", "docs/guide-000.md"])
def test_every_command_of_the_page_runs(
    page: str, few_images: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = shared / "models" / "fashion_mnist" / "mnist_cnn3.pt"
    from PIL import Image

    picture = tmp_path / "shoe.png"
    Image.new("L", (28, 28), 99).save(picture)
    found = commands(ROOT / page)
    assert len(found) >= 6, "the page has lost its commands"
    for tokens in found:
        command = filled_in(tokens, few_images, weights, picture)
        assert main(command) == 0, shlex.join(command)


def test_the_settings_page_is_up_to_date() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == module.settings_page(), (
        "run: python docs/generate.py"
    )


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
