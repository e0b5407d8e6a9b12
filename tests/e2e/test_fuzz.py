"""Damaged and hostile files: every reader gives a result or says what is wrong; nothing crashes, hangs or runs code.

A few hundred cases that are the same every time run in `make test`; `make torture` draws thousands of new ones.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import warmstart as ws
from warmstart.analysis.summary import describe_run, list_runs, runs_text, show_text
from warmstart.config import io as config_io
from warmstart.config.schema import Config, leaves
from warmstart.data.decode import CorruptImage, decode_bytes, read_shape_bytes
from warmstart.data.sources import open_source
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.models.unwrap import harmless_classes
from warmstart.models.weights import read_weights
from warmstart.run import reader

NUM_TORTURE = int(os.environ.get("WARMSTART_TORTURE", "0"))  # cases per test; 0: the fixed few
LONGEST_SECONDS, MOST_BYTES = 20, 2**30
# Image libraries warn about what they then refuse.
pytestmark = [pytest.mark.torture, pytest.mark.filterwarnings("ignore")]


def cases(few: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=NUM_TORTURE or few,
        derandomize=not NUM_TORTURE,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking costs minutes, and damaged files are small
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def within_bounds() -> Iterator[None]:
    """No hang, no memory that grows with what a header claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_BYTES, f"{grown / 2**30:.1f} GiB for one small file"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LONGEST_SECONDS} s")


@st.composite
def damaged(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """One of the contents: cut, with bits flipped, a part doubled, lost or overwritten, a byte set, or all random."""
    content = bytearray(draw(st.sampled_from(contents)))
    place = st.integers(0, len(content) - 1)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("cut", "flip", "set", "lose", "double", "overwrite", "random")))
        at, end = sorted((min(draw(place), len(content)), min(draw(place), len(content))))
        if kind == "cut":
            del content[end:]
        elif kind == "flip" and content:
            content[at % len(content)] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[at % len(content)] = draw(st.sampled_from((0, 0x7F, 0x80, 0xFF, 0x22, 0x7B)))
        elif kind == "lose":
            del content[at:end]
        elif kind == "double":
            content[at:at] = content[at:end]
        elif kind == "overwrite":
            content[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
        elif kind == "random":
            content[at:end] = draw(st.binary(max_size=64))
    return bytes(content)


# --- weights


def saved(content: object, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


STATE = {"conv.weight": torch.ones(2, 1, 3, 3), "conv.bias": torch.zeros(2), "fc.weight": torch.ones(2, 2)}
WRAPPED = {
    "state_dict": {f"module.{key}": value for key, value in STATE.items()},
    "best": np.float64(0.5),
    "classes": ["ant", "bee"],
    "version": 2,
    "arch": "resnet10t",
}
WEIGHTS = {
    ".pt": [saved(STATE), saved(STATE, legacy=True), saved(WRAPPED), saved(WRAPPED, legacy=True)],
    ".safetensors": [
        save(STATE),
        save(
            STATE, {"arch": "resnet10t", "classes": '["ant", "bee"]', "mean": "[0.5]", "image_size": "32x32"}
        ),
    ],
    ".safetensors.index.json": [
        json.dumps({"weight_map": dict.fromkeys(STATE, "part.safetensors")}).encode()
    ],
}


@pytest.mark.parametrize("suffix", WEIGHTS)
def test_damaged_weights(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").write_bytes(save(STATE))

    @cases(20)
    @given(damaged(WEIGHTS[suffix]))
    def check(content: bytes) -> None:
        file = tmp_path / f"model{suffix}"
        file.write_bytes(content)
        with within_bounds(), contextlib.suppress(UserError):
            read_weights(file)

    check()


class Call:
    """Unpickling this calls `function`."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(sign: Path) -> list[Any]:
    """Objects whose unpickling would create the file `sign`."""
    code = f"open({str(sign)!r}, 'w').close()"
    return [
        Call(os.system, (f"touch {sign}",)),
        Call(eval, (code,)),
        Call(exec, (code,)),
        Call(open, (str(sign), "w")),
        Call(os.mkdir, (str(sign),)),
        Call(Path.touch, (Path(sign),)),
        Call(shutil.copy, ("/etc/hostname", str(sign))),
        Call(torch.save, ({}, str(sign))),
        Call(torch.hub._get_torch_home, ()),
        Call(np.savetxt, (str(sign), [1.0])),
        Call(getattr, (Path(sign), "touch")),
        Call(Call(getattr, (Path(sign), "touch")), ()),  # type: ignore[arg-type]
        Call(list, ([],), {"append": 1}),
        Call(harmless_classes()[-1], (), {"__reduce__": Call(os.system, (f"touch {sign}",))}),
    ]


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    sign = tmp_path / "executed"
    hostile = st.sampled_from(attacks(sign))
    nested = st.recursive(
        hostile,
        lambda inner: st.one_of(
            st.tuples(inner),
            st.lists(inner, min_size=1, max_size=2),
            st.dictionaries(st.text("ab"), inner, min_size=1),
        ),
        max_leaves=4,
    )

    def raw(content: Any, protocol: int) -> bytes:
        return pickle.dumps(content, protocol)

    def zipped(content: Any, protocol: int) -> bytes:
        """As torch.save does, whose writer insists on protocols of its own."""
        file = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(1)}))) as whole,
            zipfile.ZipFile(file, "w") as out,
        ):
            for name in whole.namelist():
                is_pickle = name.endswith("data.pkl")
                out.writestr(name, pickle.dumps(content, protocol) if is_pickle else whole.read(name))
        return file.getvalue()

    def hidden(content: Any, protocol: int) -> bytes:
        return saved({"state_dict": STATE, "hyper_parameters": content})

    @cases(25)
    @given(nested, st.sampled_from((raw, zipped, hidden)), st.integers(2, 5))
    def check(content: Any, form: Callable[[Any, int], bytes], protocol: int) -> None:
        file = tmp_path / "model.pt"
        try:
            file.write_bytes(form(content, protocol))
        except (TypeError, AttributeError, pickle.PicklingError):
            return  # some of these cannot even be written
        with within_bounds(), contextlib.suppress(UserError):
            read_weights(file)
        assert not sign.exists(), "code of the file was run"

    check()


HAND_WRITTEN = {
    "GLOBAL and REDUCE": b"cos\nsystem\n(S'touch SIGN'\ntR.",
    "INST": b"(S'touch SIGN'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch SIGN'\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\nPLACE\x85R.",
    "memo": b'cbuiltins\neval\np0\n0g0\n(S\'open("SIGN", "w")\'\ntR.',
    "BUILD": b"cargparse\nNamespace\n)R}S'x'\ncos\nsystem\n(S'touch SIGN'\ntRsb.",
    "EXT": b"\x80\x02\x82\x01.",
    "PERSID": b"Ptouch SIGN\n.",
    "deep": b"(" * 200_000 + b"t" * 200_000 + b".",
    "memo bomb": b"(lp0\n" + b"".join(b"(lg%d\nag%d\nap%d\n" % (i, i, i + 1) for i in range(60)) + b".",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_hand_written_pickles(name: str, is_zipped: bool, tmp_path: Path) -> None:
    sign = tmp_path / "s"
    content = HAND_WRITTEN[name].replace(b"SIGN", str(sign).encode())
    file = tmp_path / "model.pt"
    if is_zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        file.write_bytes(content)
    with within_bounds(), pytest.raises(UserError):
        read_weights(file)
    assert not sign.exists()


def test_headers_of_weights_that_claim_too_much(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    claims = [
        struct.pack("<Q", 10**18) + b"{}",
        struct.pack("<Q", 90_000_000) + b"{" * 100,
        _safetensors({"w": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}, b"1234"),
        _safetensors({"w": {"dtype": "F32", "shape": [0, 10**18], "data_offsets": [0, 0]}}, b""),
        _safetensors({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b""),
        _safetensors({"__metadata__": {"classes": "[" * 100_000}}, b""),
        _safetensors({"__metadata__": {"warmstart": "[" * 100_000}}, b""),
        _safetensors({"__metadata__": {"classes": json.dumps(["a"]), "mean": "[1" + "0" * 5000 + "]"}}, b""),
        _safetensors({"__metadata__": {"image_size": "9" * 5000}}, b""),
    ]
    for claim in claims:
        file.write_bytes(claim)
        with within_bounds(), contextlib.suppress(UserError):
            read_weights(file)
    (tmp_path / "model.safetensors").unlink()
    for text in (
        "[" * 100_000,
        '{"weight_map": {"w": "a\\u0000"}}',
        '{"weight_map": {"w": 5}}',
        '{"weight_map": 5}',
    ):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with within_bounds(), pytest.raises(UserError):
            read_weights(tmp_path)


def _safetensors(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# --- pictures


def four_channels(dtype: type = np.uint8) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4)).astype(dtype)
    return bytes(cv2.imencode(".tiff", pixels)[1].tobytes())


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


_EXIF = Image.Exif()
_EXIF[274] = 6
PICTURES = {
    "PNG": [
        *(picture("PNG", mode) for mode in ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")),
        picture("PNG", "P", transparency=3),
        picture("PNG", exif=_EXIF),
    ],
    "JPEG": [
        *(picture("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        picture("JPEG", progressive=True),
        picture("JPEG", exif=_EXIF),
    ],
    "GIF": [
        picture("GIF", "P"),
        picture("GIF", "P", save_all=True, append_images=[Image.new("P", (10, 12), 7)], transparency=1),
    ],
    "TIFF": [
        picture("TIFF", "RGB"),
        picture("TIFF", "I;16"),
        picture("TIFF", "CMYK"),
        picture("TIFF", "RGB", compression="tiff_lzw"),
        picture("TIFF", "1", compression="group4"),
        picture("TIFF", "RGB", compression="jpeg"),
        four_channels().replace(struct.pack("<HHII", 338, 3, 1, 2), struct.pack("<HHII", 338, 3, 1, 0)),
    ],
    "WEBP": [picture("WEBP"), picture("WEBP", "RGBA", lossless=True)],
    "BMP": [*(picture("BMP", mode) for mode in ("1", "L", "RGB", "P"))],
    "NPY": [npy(np.ones((6, 5, 5), np.uint8)), npy(np.ones((6, 5), np.uint16))],
    "PPM": [picture("PPM"), picture("PPM", "L")],
}


@pytest.mark.parametrize("kind", PICTURES)
def test_damaged_pictures(kind: str) -> None:
    for content in PICTURES[kind]:
        assert decode_bytes(content).shape == read_shape_bytes(content)

    @cases(15)
    @given(damaged(PICTURES[kind]))
    def check(content: bytes) -> None:
        with within_bounds():
            if not content:
                return
            for read in (decode_bytes, read_shape_bytes):
                try:
                    shape = getattr(read(content), "shape", None)
                except CorruptImage as error:
                    assert error.reason and "\n" not in error.reason
                else:
                    assert shape is None or (len(shape) == 3 and min(shape) > 0)

    check()


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def _png_text_bomb() -> bytes:
    body = b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000, 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = _png(4, 4)
    return whole[:33] + chunk + whole[33:]


def _patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def _jpeg(height: int, width: int) -> bytes:
    content = picture("JPEG")
    return _patched(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def _tiff(**tags: int) -> bytes:
    """One strip of four bytes, with the tags as told."""
    known = {
        "width": 256,
        "height": 257,
        "bits": 258,
        "strips": 273,
        "samples": 277,
        "rows": 278,
        "counts": 279,
    }
    values = {"width": 2, "height": 2, "bits": 8, "strips": 8, "samples": 1, "rows": 2, "counts": 4} | tags
    entries = sorted((known[name], value) for name, value in values.items())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (262, 1)])
    return (
        b"II*\0"
        + struct.pack("<I", 12)
        + b"\1\2\3\4"
        + struct.pack("<H", len(entries) + 1)
        + body
        + b"\0" * 4
    )


LIARS = {
    "png 1e9 x 1e9": _png(10**9, 10**9),
    "png 2e9 x 1": _png(2 * 10**9, 1),
    "png text bomb": _png_text_bomb(),
    "jpeg 65535 x 65535": _jpeg(65535, 65535),
    "gif 65535 x 65535": _patched(picture("GIF", "P"), 6, struct.pack("<HH", 65535, 65535)),
    "bmp 1e9 x 1e9": _patched(picture("BMP"), 18, struct.pack("<ii", 10**9, 10**9)),
    "bmp -2**31": _patched(picture("BMP"), 18, struct.pack("<ii", 10, -(2**31))),
    "tiff 1e9 x 1e9": _tiff(width=10**9, height=10**9),
    "tiff 4e9 samples": _tiff(samples=4 * 10**9),
    "tiff strip of 4 GiB": _tiff(counts=2**32 - 1),
    "ppm 1e9 x 1e9": b"P6\n1000000000 1000000000\n255\n\0\0\0",
    "ppm number of a million digits": b"P6\n" + b"9" * 1_000_000 + b" 3\n255\n",
    "npy 1e9 x 1e9": npy(np.ones((6, 5, 3), np.uint8)).replace(b"(6, 5, 3)", b"(1000000000, 1000000000, 3)"),
    "npy of objects": npy(np.ones(3, np.uint8)).replace(b"'|u1'", b"'|O' "),
    "npy deep": npy(np.ones(3, np.uint8))[:10] + b"(" * 10_000,
    "webp 16384 x 16384": b"RIFF\x24\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0VP8 \0\0\0\0",
}


@pytest.mark.parametrize("name", LIARS)
def test_pictures_that_claim_to_be_huge(name: str) -> None:
    with within_bounds(), contextlib.suppress(CorruptImage):
        assert decode_bytes(LIARS[name]).size < 1000
    with within_bounds(), contextlib.suppress(CorruptImage):
        read_shape_bytes(LIARS[name])


# --- tables and IDX


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


IMAGES = [{"bytes": picture("PNG"), "path": f"{i}.png"} for i in range(4)]
TABLES = {
    "data.csv": [
        b"path,label,split\na.png,ant,train\nb.png,bee,val\nc.png,ant,train\n",
        b"image;label\na.png;ant|bee\nb.png;\n",
        b'path,label\n"a,1.png",ant\n"b ""2"".png",bee\n',
    ],
    "data.parquet": [
        parquet({"image": IMAGES, "label": [0, 1, 0, 1]}),
        parquet({"image": IMAGES, "label": ["a", "b", "a", "b"]}, compression="zstd", use_dictionary=False),
        parquet(
            {"path": ["a.png", "b.png"], "label": ["a", "b"], "split": ["train", "val"]}, compression="gzip"
        ),
    ],
}


def read_all(path: Path) -> None:
    """Open as a data set and read every picture."""
    with within_bounds(), contextlib.suppress(UserError):
        source = open_source(path, allow_single_class=True)
        for samples in source.splits.values():
            for index in range(len(samples)):
                with contextlib.suppress(CorruptImage):
                    samples.pixels.read(index)


@pytest.mark.parametrize("name", TABLES)
def test_damaged_tables(name: str, tmp_path: Path) -> None:
    @cases(20)
    @given(damaged(TABLES[name]))
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        read_all(tmp_path / name)

    check()


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_damaged_idx(ending: str, tmp_path: Path) -> None:
    images, labels = idx(np.ones((4, 3, 3), np.uint8)), idx(np.arange(4, dtype=np.uint8))
    pack: Callable[[bytes], bytes] = (lambda data: gzip.compress(data, mtime=0)) if ending else bytes
    (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(pack(labels))

    @cases(15)
    @given(st.one_of(damaged([pack(images)]), damaged([images]).map(pack)))
    def check(content: bytes) -> None:
        (tmp_path / f"train-images-idx3-ubyte{ending}").write_bytes(content)
        read_all(tmp_path)

    check()


def test_idx_bombs(tmp_path: Path) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4, dtype=np.uint8)))
    huge = b"\0\0\x08\3" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(huge)
    with within_bounds(), pytest.raises(UserError, match="its header promises"):
        open_source(tmp_path)
    file.unlink()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as stream:
        stream.write(b"\0\0\x08\3" + struct.pack(">3I", 4, 3, 3))
        for _ in range(1500):
            stream.write(b"\0" * 2**20)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed.getvalue())
    with within_bounds(), pytest.raises(UserError, match="its header promises"):
        open_source(tmp_path)


# --- settings

_LEAVES = [leaf.path for leaf in leaves()]
_ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ("1e9999", "0x", "-", "1:2", "10m", "1e400epochs", "a=1", "0:head", "9" * 5000, "64x", "²")
        ),
        st.binary(max_size=3),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=5,
)


@cases(40)
@given(st.dictionaries(st.sampled_from(_LEAVES), _ODD, min_size=1, max_size=3), st.booleans())
def test_odd_settings(values: dict[str, Any], by_flag: bool) -> None:
    with within_bounds(), contextlib.suppress(UserError):
        flags = {leaf.path: leaf.flag for leaf in leaves()}
        if by_flag:
            config_io.load({flags[path]: value for path, value in values.items()})
        else:
            nested: dict[str, dict[str, Any]] = {}
            for path, value in values.items():
                nested.setdefault(path.split(".")[0], {})[path.split(".")[1]] = value
            config_io.from_dict(nested)


_BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
YAMLS = [
    config_io.to_yaml(Config(), {}).encode(),
    config_io.template({"data.path": "pictures"}).encode(),
    b"data: {path: a, limit: .1}\noptim:\n  lr: 4e-4\n  weight_decay: 0.1\nadapt: {unfreeze: '0:head,2:all'}\n",
]
HOSTILE_YAMLS = {
    "code": "data: !!python/object/apply:os.system ['touch SIGN']\n",
    "module": "data: !!python/module:os\n",
    "bomb": _BOMB + "data: {path: *p}\n",
    "bomb at the top": _BOMB + "optim: *p\n",
    "ring": "data: &a {path: *a}\n",
    "deep list": "[" * 5000,
    "deep mapping": "data: " + "{a: " * 3000,
    "long number": "optim: {lr: " + "9" * 6000 + "}\n",
    "sexagesimal": "optim: {lr: 1" + ":59" * 2000 + "}\n",
    "set": "data: !!set {a, b}\n",
    "binary": "data: !!binary aGFsbG8=\n",
    "timestamp": "data: 2001-13-45\n",
    "zero byte": "data: 'a\0b'\n",
}


@pytest.mark.parametrize("name", HOSTILE_YAMLS)
def test_hostile_yaml(name: str, tmp_path: Path) -> None:
    sign, file = tmp_path / "s", tmp_path / "config.yaml"
    file.write_text(HOSTILE_YAMLS[name].replace("SIGN", str(sign)))
    with within_bounds(), pytest.raises(UserError) as caught:
        config_io.load({}, str(file))
    assert len(str(caught.value)) < 20_000 and not sign.exists()


def test_damaged_yaml(tmp_path: Path) -> None:
    @cases(20)
    @given(st.one_of(damaged(YAMLS), st.text().map(str.encode)))
    def check(content: bytes) -> None:
        (tmp_path / "config.yaml").write_bytes(content)
        with within_bounds(), contextlib.suppress(UserError):
            config_io.load({}, str(tmp_path / "config.yaml"))

    check()


# --- runs

RUN_FILES = (
    "config.yaml",
    "resolved.json",
    "plan.json",
    "status.json",
    "gains.json",
    "metrics.jsonl",
    "evals.jsonl",
    "checkpoints/BEST",
    "checkpoints/LAST",
    "checkpoints/*/MANIFEST.json",
    "checkpoints/*/model.safetensors",
)


@pytest.fixture(scope="module")
def run(overlapping: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = ws.finetune(
        "builtin:fashion_cnn",
        str(overlapping),
        weights="none",
        image_size="16",
        batch_size=8,
        lr=0.01,
        epochs=1,
        workers=0,
        device="cpu",
        tensorboard=False,
        pictures=False,
        output_dir=str(root / "run"),
    )
    torch.set_num_threads(before)
    return Path(result.run)


@pytest.mark.parametrize("pattern", RUN_FILES)
def test_damaged_runs(pattern: str, run: Path) -> None:
    """Listing, showing and restoring a run of which one file is damaged."""
    file = sorted(run.glob(pattern))[-1]
    whole = file.read_bytes()

    def attempts() -> list[Callable[[], object]]:
        return [
            lambda: runs_text(list_runs(str(run.parent))),
            lambda: show_text(describe_run(str(run))),
            lambda: reader.model_file(str(run)),
            lambda: restore(str(run), torch.device("cpu")).task,
        ]

    for attempt in attempts():
        attempt()

    @cases(8)
    @given(damaged([whole]))
    def check(content: bytes) -> None:
        file.write_bytes(content)
        for attempt in attempts():
            with within_bounds(), contextlib.suppress(UserError):
                attempt()

    try:
        check()
    finally:
        file.write_bytes(whole)
