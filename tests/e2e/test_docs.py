"""Every command and Python block of the pages is run; training is cut to one step on few real images, masks to half.

The Chinese pages have the same commands as the English ones, and name the same flags.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_clip import write_clip, write_folders

import forked
import fresh
from published_ocec import checkpoint
from tiny_imagenet import write_tiny_imagenet
from torchvision_cache import write_cache
from warmstart.cli import main
from warmstart.commands import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = ("settings.md", "commands.md")
ENGLISH = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LARGE, SMALL = "96x128", "64x96"  # image sizes with masks: of the pages, and here
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)


def twin(page: Path) -> Path:
    return ROOT / "README.zh-CN.md" if page.parent == ROOT else DOCS / "zh" / page.name


def commands(page: Path) -> list[list[str]]:
    """The `warmstart ...` and `torchrun ...` lines of a page's bash blocks, as tokens."""
    blocks = [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "bash"]
    lines = [
        line for block in blocks for line in block.splitlines() if re.match(r"(warmstart|torchrun) ", line)
    ]
    return [shlex.split(line, comments=True) for line in lines]


def python_blocks(page: Path) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "python"]


def yaml_files(page: Path) -> dict[str, str]:
    """The settings of a page whose first line is `# NAME.yaml`, by that name."""
    blocks = [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "yaml"]
    named = [(re.match(r"# (\S+\.yaml)\n", code), code) for code in blocks]
    return {match[1]: code for match, code in named if match}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def lay_out(folder: Path, data: Path, weights: Path) -> None:
    """What the pages call photos, album, pictures.csv, checkpoints, ...: the same few images in many forms."""
    raw = gzip.decompress((data / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    images = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    labels = np.frombuffer(
        gzip.decompress((data / "train-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8
    ).tolist()
    names = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = f"photos/{label}/session{number // 2}_{number}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        names.append(name)
    tables = {
        "pictures.csv": [("path", "label"), *zip(names, labels, strict=True)],
        "tags.csv": [
            ("path", "tags"),
            *((n, f"{c}|even" if c % 2 == 0 else c) for n, c in zip(names, labels, strict=True)),
        ],
        "attributes.csv": [
            ("path", "outdoor", "people"),
            *((n, c % 2, int(c > 4)) for n, c in zip(names, labels, strict=True)),
        ],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(rows)
    shutil.copytree(folder / "photos", folder / "album" / "photos")
    shutil.copy(folder / "pictures.csv", folder / "album" / "labels.csv")
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    pq.write_table(pa.table({"image": content, "label": labels}), folder / "pictures.parquet")
    torchvision = folder / "datasets" / "FashionMNIST" / "raw"
    torchvision.mkdir(parents=True)
    for path in data.glob("*.gz"):
        (torchvision / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    shutil.copy(weights, folder / "plain.pth")
    (folder / "checkpoints").mkdir()
    for epoch, accuracy in ((1, "0.71"), (2, "0.93"), (3, "0.90")):
        shutil.copy(weights, folder / "checkpoints" / f"epoch={epoch}-val_acc={accuracy}.pt")
    Image.new("L", (28, 28), 99).save(folder / "shoe.png")
    write_tiny_imagenet(folder / "tiny-imagenet-200")


def lay_out_masks(folder: Path, camvid: Path) -> None:
    """What the pages call camvid and best_model.pth: few real images with masks, and a file as ce7454 writes it."""
    for split, number in (("train", 8), ("val", 4), ("test", 2)):
        for image in sorted((camvid / split / "images").iterdir())[:number]:
            mask = camvid / split / "masks" / f"{image.stem}.png"
            for source in (image, mask):
                target = folder / "camvid" / split / source.parent.name / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    import torch

    from warmstart.models.builtin.microsegformer import MicroSegFormer

    module = MicroSegFormer(num_classes=11)
    optimizer = torch.optim.AdamW(module.parameters(), 8e-4)
    module(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 91,
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": {"last_epoch": 91, "_last_lr": [1e-5]},
        "best_f_score": 0.688861,
        "config": {"model": {"dropout": 0.15}},
        "history": {},
    }
    torch.save(content, folder / "best_model.pth")


def lay_out_eyes(folder: Path, data: Path) -> None:
    """What guide 001 calls a, b, annotations.csv and model_a: closed and open, in b as a negative."""
    raw = gzip.decompress((data / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    images = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)
    rows = [("path", "label", "session")]
    splits = ["train"] * 3 + ["val", "test"]
    for number, image in enumerate(images):
        label, name = ("closed", "open")[number // 2 % 2], "ab"[number % 2]
        place = Path(name) / splits[number // 4 % 5] / label / f"{number:03}.png"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - image if name == "b" else image).convert("RGB").save(folder / place)
        rows += [(place.as_posix(), label, str(number // 8))] if name == "b" else []
    with (folder / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "model_a").mkdir()
    for epoch, score in ((55, "0.7759"), (126, "0.9845")):
        checkpoint(folder / "model_a", file=f"ocec_best_epoch{epoch:04}_f1_{score}.pt", epoch=epoch)


def filled_in(tokens: list[str], data: Path, weights: Path) -> list[str]:
    words = {"$WEIGHTS": str(weights), "WEIGHTS": str(weights), "$DATA": str(data), "DATA": str(data)}
    words |= {"IMAGES": "shoe.png", "cuda": "cpu", LARGE: SMALL}
    result = []
    for token in tokens:
        flag, equals, value = token.partition("=")
        is_flag = bool(equals) and flag.startswith("--")
        result.append(flag + equals + words.get(value, value) if is_flag else words.get(token, token))
    if "alexnet-tiny-imagenet" in result:  # 57 million parameters, which a checkpoint would hold three times
        result += ["--batch-size", "4", *(() if "--dry-run" in result else ("--dry-run",))]
    elif {"finetune", "distill", "multitask", "meta"} & set(result) and "--dry-run" not in result:
        result += ["--max-steps", "1", "--no-pictures"]
    if "compress" in result and not {"--epochs", "int8"} & set(result):
        result += ["--epochs", "0"]
    if "continue" in result:  # one step more than the parent, which counts where everything is kept
        parent = next(Path(token) for token in result if token.startswith("runs/") or token.endswith(".pth"))
        done = [int(path.name.removeprefix("step_")) for path in parent.glob("checkpoints/step_*")]
        result += ["--max-steps", str(max(done, default=0) + 1)]
    if "sweep" in result and "--trials" in result:
        result[result.index("--trials") + 1] = "2"
    if "verify-resume" in result:
        result += ["--steps", "6"]
    return result


def run(command: list[str]) -> None:
    """In this process, or, under a launcher, in processes of its own."""
    program, *rest = command
    if "resume" in rest:  # a finished run has nothing to resume: take its end away
        cut_short(Path(rest[-1]))
    if program == "warmstart":
        assert main(rest) == 0, shlex.join(command)
        return
    done = fresh.run(*rest, module="torch.distributed.run")
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"


def cut_short(folder: Path) -> None:
    """A finished run of one step as it was before that step."""
    last = max((folder / "checkpoints").glob("step_*"))
    first = min((folder / "checkpoints").glob("step_*"))
    assert first != last
    shutil.rmtree(last)
    for pointer in ("LAST", "BEST"):
        (folder / "checkpoints" / pointer).write_text(first.name, encoding="utf-8")
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}), encoding="utf-8")


RUNNABLE = [page for page in ENGLISH if commands(page)]


@pytest.mark.shared
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_every_command_of_the_page_runs(
    page: Path, few_images: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warmstart.methods.compress.cost._SECONDS", 0.0)  # of each latency
    monkeypatch.setattr("warmstart.methods.tryout.tryout.launch_here", forked.launch)
    monkeypatch.setattr("warmstart.methods.sweep.flow.launch_here", forked.launch)
    monkeypatch.setattr("warmstart.verify.processes.start", forked.start)
    weights = shared / "models" / "fashion_mnist" / "mnist_cnn3.pt"
    lay_out(tmp_path, few_images, weights)
    lay_out_masks(tmp_path, shared / "data" / "camvid")
    lay_out_eyes(tmp_path, few_images)
    if page.name in ("image-text.md", "guide-004.md"):
        write_clip(tmp_path / "clip", steps=0)
        for name in ("shapes", "raw"):
            write_folders(tmp_path / name, {"train": 2, "val": 1, "test": 1}, seed=0)
    if page.name == "guide-003.md":
        shutil.copytree(tmp_path / "photos", tmp_path / "cifar10")
        write_cache(tmp_path / "torch")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, settings in yaml_files(page).items():
        (tmp_path / name).write_text(settings.replace(LARGE, SMALL), encoding="utf-8")
    for tokens in commands(page):
        run(filled_in(tokens, few_images, weights))
    for code in python_blocks(page):
        exec(compile(code, page.name, "exec"), {})


def test_the_pages_with_commands_have_kept_them() -> None:
    counts = {page.name: len(commands(page)) for page in RUNNABLE}
    wanted = {
        "guide-000.md",
        "guide-001.md",
        "guide-002.md",
        "guide-003.md",
        "guide-004.md",
        "several-processes.md",
        "data.md",
        "checkpoints.md",
        "image-text.md",
        "what-went-wrong.md",
        "sweep.md",
    }
    assert {"README.md", "segmentation.md", *wanted} <= set(counts)
    assert min(counts.values()) >= 2 and sum(counts.values()) >= 70
    assert set(yaml_files(DOCS / "guide-002.md")) == {
        "camvid.yaml",
        "lmsa_continue_from_best.yaml",
        "phases.yaml",
    }


SUMMARISED = ("architecture.md", "performance.md")  # in Chinese: what they are about, and a link
TRANSLATED = [page for page in ENGLISH if page.name not in (*SUMMARISED, *GENERATED)]


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_the_chinese_page_says_the_same_commands_and_flags(page: Path) -> None:
    chinese = twin(page)
    assert commands(chinese) == commands(page)
    assert python_blocks(chinese) == python_blocks(page)
    assert yaml_files(chinese) == yaml_files(page)
    told = {
        path: set(re.findall(r"--[a-z][a-z-]*[a-z]", path.read_text(encoding="utf-8")))
        for path in (page, chinese)
    }
    assert told[chinese] == told[page]


def test_the_generated_pages_are_up_to_date() -> None:
    for path, text in load("generate").pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is old; run: python docs/generate.py"


def test_every_setting_and_flag_has_its_chinese_words() -> None:
    """None missing, none left over; numbers and flags of the English text stand in the Chinese one too."""
    generate = load("generate")
    english, chinese = generate.english(), generate.words()
    assert set(english) == set(chinese)
    facts = re.compile(r"--[a-z][a-z-]*[a-z]|(?<![\w.])\.?\d+(?:\.\d+)?(?:e-\d+)?")
    problems = []
    for kind, texts in english.items():
        problems += [f"{kind}.{name} is missing" for name in texts.keys() - chinese[kind].keys()]
        problems += [f"{kind}.{name} is stale" for name in chinese[kind].keys() - texts.keys()]
        for name in texts.keys() & chinese[kind].keys():
            lost = set(facts.findall(texts[name])) - set(facts.findall(chinese[kind][name]))
            problems += [f"{kind}.{name} lacks {', '.join(sorted(lost))}"] if lost else []
    assert not problems, "docs/zh/reference.yaml: " + "; ".join(sorted(problems))


def test_the_commands_page_has_every_command_and_flag() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        part = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for flag in command.flags():
            shown = f"`{flag.name.upper()}`" if flag.positional else f"`--{flag.name.replace('_', '-')}`"
            assert shown in part or "all [settings](settings.md)" in part, f"{name} {shown}"


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.zh-CN.md", *ENGLISH, *(DOCS / "zh").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds_without_a_warning_and_without_the_network(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for start, language in (("index.html", "en"), ("zh/index.html", "zh-CN")):
        page = (site / start).read_text(encoding="utf-8")
        assert f'lang="{language}"' in page
        assert not re.search(r'(src|<link[^>]* href)="(https?:)?//', page), "the page fetches from elsewhere"
    indexed = {
        entry["location"] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]
    }
    assert {"settings/", "zh/settings/", "zh/glossary/"} <= indexed


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the site's search")
@pytest.mark.parametrize(
    ("query", "found"),
    [("断点续训", "zh/#续训"), ("冻结主干", "都冻结的主干"), ("freeze BN", "bn-freeze"), ("absent", None)],
)
def test_the_search_of_the_site_finds_chinese_and_english(query: str, found: str | None) -> None:
    docs = [
        {"location": "zh/", "title": "断点续训", "text": "断点续训 把中断的运行原样完成。"},
        {"location": "zh/#续训", "title": "断点续训", "text": "把中断的运行原样完成。"},
        {"location": "都冻结的主干", "title": "方案", "text": "先冻结主层，后来冻结主干上的块；结主"},
        {"location": "bn-freeze", "title": "What is frozen", "text": "Freeze every BN."},
    ]
    worker = (DOCS / "search" / "worker.js").read_text(encoding="utf-8")
    script = f"{worker}\nload({json.dumps(docs)}); console.log(JSON.stringify(search({json.dumps(query)})))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    assert [entry["location"] for entry in json.loads(done.stdout)] == ([found] if found else [])


def test_both_languages_stand_in_the_menu() -> None:
    nav = yaml.unsafe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    english, chinese = (
        [path for entry in tree.values() for item in entry for path in item.values()] for tree in nav
    )
    assert [f"zh/{path}" for path in english] == [path for path in chinese if path != "zh/glossary.md"]
