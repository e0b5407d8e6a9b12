from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from warmstart.data.decode import CorruptImage, decode, scale_to_cover
from warmstart.data.masks import MaskCoding, MaskPixels, as_ids, as_pixels, decode_mask
from warmstart.data.samples import FilePixels, Pixels, Samples
from warmstart.data.store import StoredPixels, keep
from warmstart.data.store_plan import StorePlan
from warmstart.errors import UserError

PLAIN, WIDE = MaskCoding(), MaskCoding(wide=True)
IDS = np.random.default_rng(0).integers(0, 12, (9, 14), dtype=np.uint8)
LARGE = np.random.default_rng(0).integers(0, 65536, (9, 14), dtype=np.uint16)
COLOURS = {(128, 64, 128): 0, (0, 0, 142): 1, (0, 0, 0): 255}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette(ids: np.ndarray) -> Image.Image:
    """Colours in no order at all, two of them alike: only the indices tell the ids."""
    image = Image.fromarray(ids, "L").convert("L")
    image.putpalette(np.random.default_rng(1).integers(0, 4, 768, dtype=np.uint8).tobytes())
    return image


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def grey_png(ids: np.ndarray, depth: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a sample, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bits = np.unpackbits(ids[..., None], axis=2)[..., -depth:].reshape(len(ids), -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(palette(IDS)),
        encoded(palette(IDS), bits=4),
        encoded(palette(IDS), transparency=3),
        encoded(palette(IDS), "GIF"),
        encoded(palette(IDS), "TIFF"),
        encoded(Image.fromarray(IDS)),
        encoded(Image.fromarray(IDS), "BMP"),
        encoded(Image.fromarray(IDS.astype(np.uint16))),
        encoded(Image.fromarray(IDS.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(IDS.astype(np.int32)), "TIFF"),
        grey_png(IDS, 4),
        array(IDS),
        array(IDS.astype(np.int64)),
        array(IDS[..., None].astype(">u2")),
    ],
)
def test_the_number_in_the_file_is_the_id(data: bytes) -> None:
    found = decode_mask(data, PLAIN)
    assert found.dtype == np.uint8 and (found == IDS).all()
    wide = decode_mask(data, WIDE)
    assert wide.dtype == np.uint16 and (wide == IDS).all()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_samples_of_few_bits_are_not_stretched(depth: int) -> None:
    ids = IDS % 2**depth
    assert (decode_mask(grey_png(ids, depth), PLAIN) == ids).all()


@pytest.mark.parametrize("make", [lambda ids: encoded(Image.fromarray(ids)), array])
def test_ids_beyond_255_need_two_bytes(make) -> None:
    assert (decode_mask(make(LARGE), WIDE) == LARGE).all()
    with pytest.raises(CorruptImage, match="ids go from 0 to 255"):
        decode_mask(make(LARGE), PLAIN)


def test_colours_stand_for_ids() -> None:
    numbers = np.random.default_rng(2).integers(0, 3, (8, 11))
    picture = np.array(list(COLOURS), dtype=np.uint8)[numbers]
    expected = np.array(list(COLOURS.values()))[numbers]
    coding = MaskCoding(COLOURS)
    opaque = np.dstack((picture, np.full((8, 11), 255, np.uint8)))
    for data in (encoded(Image.fromarray(picture)), encoded(Image.fromarray(opaque)), array(picture)):
        assert (decode_mask(data, coding) == expected).all()
    remapped = decode_mask(encoded(Image.fromarray(picture)), MaskCoding(COLOURS, {255: 3, 3: 7, 0: 1}))
    assert (remapped == np.array([1, 1, 3])[numbers]).all()
    picture[5, 6] = 1, 2, 3
    with pytest.raises(CorruptImage, match=r"colour \(1, 2, 3\) is not in the colour table"):
        decode_mask(encoded(Image.fromarray(picture)), coding)
    with pytest.raises(CorruptImage, match="no colour table"):
        decode_mask(encoded(Image.fromarray(picture)), PLAIN)
    assert (decode_mask(encoded(palette(IDS)), coding) == IDS).all(), "a palette's colours say nothing"


def test_remap_changes_all_at_once_and_leaves_the_rest() -> None:
    coding = MaskCoding(remap={0: 255, 1: 0, 2: 1, -1: 9, 4000: 8})
    values = np.array([[0, 1, 2, 3], [-1, 4000, 254, 0]])
    assert decode_mask(array(values), coding).tolist() == [[255, 0, 1, 3], [9, 8, 254, 255]]
    assert decode_mask(encoded(Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))), coding).tolist() == [
        [255, 0, 1, 3]
    ]
    with pytest.raises(CorruptImage, match="id -1: ids go from 0 to 255"):
        decode_mask(array(values), PLAIN)


@pytest.mark.parametrize(
    "wrong", [{"colours": {(0, 300, 0): 1}}, {"colours": {(0, 0, 0): 256}}, {"remap": {1: -1}}]
)
def test_tables_that_make_no_ids(wrong: dict) -> None:
    with pytest.raises(UserError, match="colour table"):
        MaskCoding(**wrong)
    MaskCoding({(0, 0, 0): 256}, {256: 255})  # it is what remains that must fit


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(Image.fromarray(IDS), "JPEG"), "blurs ids"),
        (encoded(Image.fromarray(IDS).convert("LA")), "kind LA"),
        (encoded(Image.fromarray(np.zeros((4, 4, 4), np.uint8))), "kind RGBA"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "kind F"),
        (array(np.ones((4, 4))), "float64 of shape"),
        (array(np.ones((2, 4, 4), np.uint8)), "whole numbers"),
        (array(np.zeros((0, 4), np.uint8)), "whole numbers"),
        (encoded(palette(IDS))[:-40], "truncated|broken|EOF"),
        (b"no image", "not an image in any known format"),
    ],
)
def test_what_holds_no_ids_is_corrupt(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        decode_mask(data, PLAIN)


def test_ids_and_their_bytes() -> None:
    for ids in (IDS, LARGE, np.stack((LARGE, LARGE[::-1])), LARGE[:, ::2]):
        pixels = as_pixels(ids)
        assert pixels.dtype == np.uint8 and pixels.shape == (*ids.shape, ids.itemsize)
        assert as_ids(pixels).dtype == ids.dtype and (as_ids(pixels) == ids).all()
        assert np.shares_memory(as_ids(pixels), pixels)
    assert as_pixels(np.array([[258]], np.uint16)).tolist() == [[[2, 1]]]


@pytest.fixture
def files(tmp_path: Path) -> FilePixels:
    """Masks of ids up to 299: two larger than the store size, one smaller, one array, one ribbon."""
    rng = np.random.default_rng(3)
    for number, size in enumerate([(51, 81), (91, 41), (20, 25), (61, 61), (10, 400)]):
        ids = rng.integers(0, 300, size, dtype=np.uint16)
        path = tmp_path / f"{number}.png"
        if number == 3:
            np.save(path.with_suffix(".npy"), ids)
        else:
            Image.fromarray(ids).save(path)
    return FilePixels(tuple(sorted(tmp_path.iterdir())))


def test_the_header_tells_the_shape(files: FilePixels) -> None:
    masks: Pixels = MaskPixels(files, WIDE)
    assert [masks.shape(index) for index in range(5)] == [masks.read(index).shape for index in range(5)]
    assert masks.shape(3) == (61, 61, 2) and not masks.has_more_frames(0)
    assert (masks.subset(np.array([4, 1])).read(1) == masks.read(1)).all()


def test_a_mask_that_is_turned_like_its_photograph(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    palette(IDS).save(tmp_path / "a.png", exif=turned)
    masks = MaskPixels(FilePixels((tmp_path / "a.png",)), PLAIN)
    assert (as_ids(masks.read(0)) == np.rot90(IDS, -1)).all() and masks.shape(0) == (14, 9, 1)


def nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The id under the middle of each new pixel, written by hand; odd sizes, so that it is never on an edge."""
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, ids.shape, strict=True)
    )
    return ids[rows[:, None], columns]


@pytest.mark.parametrize("mode", ["disk", "ram"])
def test_a_store_keeps_masks_to_the_byte(files: FilePixels, tmp_path: Path, mode: str) -> None:
    """At the size of their images; `off` shrinks as they are delivered, with the same result."""
    masks = MaskPixels(files, WIDE)
    samples = Samples(tuple("abcde"), np.full(5, -1), masks)
    plan = StorePlan(mode, tmp_path / "cache", (37, 37), 3).for_masks(WIDE.wide)
    for _ in range(2):  # built, then found
        kept = keep({"all": samples}, plan, 0)
        assert kept is not None and kept["all"][1].corrupt == ()
        stored = kept["all"][0].pixels
        assert isinstance(stored, StoredPixels)
        for index, size in enumerate([(37, 59), (82, 37), (20, 25), (37, 37), None]):
            found = stored.read(index)
            original = masks.read(index)
            if size is not None:
                assert (as_ids(found) == nearest(as_ids(original), size)).all()
            if index == 4:  # lower than the store size: as it is
                assert (found == original).all()
            delivered = [scale_to_cover(mask, (37, 37), nearest=True) for mask in (found, original)]
            assert (delivered[0] == delivered[1]).all()
            assert stored.shape(index) == original.shape
        assert set(np.unique(as_ids(stored.read(0)))) <= set(np.unique(as_ids(masks.read(0))))
    assert len(list(tmp_path.rglob("*.pixels"))) == (mode == "disk")


def test_damage_is_noticed_and_corrupt_masks_are_named(files: FilePixels, tmp_path: Path) -> None:
    masks = MaskPixels(files, PLAIN)  # ids beyond 255 in every file
    plan = StorePlan("disk", tmp_path / "cache", (37, 37), 3).for_masks(False)
    kept = keep({"all": Samples(tuple("abcde"), np.full(5, -1), masks)}, plan, 0)
    assert kept is not None
    assert [name for name, _ in kept["all"][1].corrupt] == list("abcde")
    assert "ids go from 0 to 255" in kept["all"][1].corrupt[0][1]
    good = MaskPixels(files, WIDE)
    samples = Samples(tuple("abcde"), np.full(5, -1), good)
    wide = StorePlan("disk", tmp_path / "cache", (37, 37), 3).for_masks(True)
    before = set(tmp_path.rglob("*.pixels"))
    keep({"all": samples}, wide, 0)
    (path,) = set(tmp_path.rglob("*.pixels")) - before
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    again = keep({"all": samples}, wide, 0)
    assert again is not None
    last = max(range(5), key=lambda index: again["all"][0].pixels.places[index, 1])
    assert (again["all"][0].pixels.read(last) == good.read(last)).all(), "served from the file itself"


def test_masks_images_and_tables_never_share_a_file(files: FilePixels, tmp_path: Path) -> None:
    plan = StorePlan("disk", tmp_path / "cache", (37, 37), 1)
    pngs = files.subset(np.array([0, 1, 2]))
    variants = [(pngs, plan), (pngs, plan.for_masks(False))]
    variants += [(MaskPixels(pngs, c), plan.for_masks(True)) for c in (WIDE, MaskCoding({}, {1: 2}, True))]
    for pixels, its in variants:
        assert keep({"all": Samples(tuple("abc"), np.full(3, -1), pixels)}, its, 0) is not None
    assert len(list(tmp_path.rglob("*.pixels"))) == len(variants)


def test_real_masks(shared: Path, tmp_path: Path) -> None:
    """CamVid: ids 0 to 11; each kept mask has the size of its kept image."""
    folder = shared / "camvid" / "val"
    names = sorted(path.stem for path in (folder / "masks").iterdir())[:12]
    masks = MaskPixels(FilePixels(tuple(folder / "masks" / f"{name}.png" for name in names)), PLAIN)
    images = FilePixels(tuple(folder / "images" / f"{name}.jpg" for name in names))
    plan = StorePlan("ram", tmp_path, (128, 128), 3)
    kept = [
        keep({"all": Samples(tuple(names), np.full(12, -1), pixels)}, its, 0)
        for pixels, its in ((images, plan), (masks, plan.for_masks(False)))
    ]
    for index in range(12):
        image, mask = (found["all"][0].pixels.read(index) for found in kept if found is not None)
        assert image.shape[:2] == mask.shape[:2] == (128, 171)
        assert set(np.unique(mask)) <= set(range(12))
        whole = as_ids(masks.read(index))
        assert (whole == cv2.imread(str(masks.files.paths[index]), cv2.IMREAD_UNCHANGED)).all()
        assert (whole == decode(masks.files.paths[index])[..., 0]).all()
        shares = [np.bincount(ids.ravel(), minlength=12) / ids.size for ids in (whole, mask)]
        assert np.abs(shares[0] - shares[1]).max() < 0.01
