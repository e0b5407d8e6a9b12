from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from warmstart.data import decode as module
from warmstart.data.decode import (
    CorruptImage,
    centre_crop,
    cover,
    decode,
    decode_bytes,
    has_more_frames,
    read_shape,
    read_shape_bytes,
    scale_to_cover,
    to_channels,
)
from warmstart.errors import UserError
from warmstart.records import Preprocessing

EXIF_TURNED = Image.Exif()
EXIF_TURNED[274] = 6  # shown after a quarter turn clockwise


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def close(a: np.ndarray, b: np.ndarray, tolerance: int = 3) -> bool:
    return a.shape == b.shape and int(np.abs(a.astype(int) - b.astype(int)).max()) <= tolerance


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_formats_give_their_pixels(tmp_path, picture, ending):
    options = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"a.{ending}", Image.fromarray(picture()), **options)
    assert (decode(path) == picture()).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_rgb(tmp_path, picture, options):
    path = save(tmp_path / "a.jpg", Image.fromarray(picture()), quality=95, **options)
    assert close(decode(path), picture(), 20)
    assert decode(path)[0, 0].argmax() == 0  # red first


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied(tmp_path, picture, ending):
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    path = save(tmp_path / f"a.{ending}", Image.fromarray(picture()), exif=EXIF_TURNED, **options)
    assert close(decode(path), np.rot90(picture(), -1), 8)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp"])
def test_grey_files_have_one_channel(tmp_path, picture, ending):
    grey = picture()[..., 0]
    image = decode(save(tmp_path / f"a.{ending}", Image.fromarray(grey)))
    assert image.shape == (24, 36, 1)
    assert close(image[..., 0], grey)


def test_grey_jpeg_is_turned_too(tmp_path, picture):
    path = save(tmp_path / "a.jpg", Image.fromarray(picture()[..., 0]), exif=EXIF_TURNED)
    assert decode(path).shape == (36, 24, 1)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_keeps_its_tones(tmp_path, ending):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    image = decode(save(tmp_path / f"a.{ending}", Image.fromarray(values)))
    assert (image[..., 0] == np.round(values / 257)).all()


def test_16_bit_colour_keeps_its_tones(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "a.png"), picture()[..., ::-1].astype(np.uint16) * 257)
    assert close(decode(tmp_path / "a.png"), picture(), 1)


def test_alpha_is_composited_on_white(tmp_path):
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)
    image = decode(save(tmp_path / "a.png", Image.fromarray(pixels)))
    assert image[0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    grey = Image.fromarray(pixels).convert("LA")
    assert decode(save(tmp_path / "b.png", grey)).shape == (2, 3, 1)
    assert decode(tmp_path / "b.png")[0, 1, 0] == 255


def test_palette_with_and_without_transparency(tmp_path, picture):
    palette = Image.fromarray(picture()).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert (decode(save(tmp_path / "a.png", palette)) == expected).all()
    hidden = save(tmp_path / "b.png", palette, transparency=palette.getpixel((0, 0)))
    assert decode(hidden)[0, 0].tolist() == [255, 255, 255]
    assert (decode(save(tmp_path / "c.gif", palette)) == expected).all()


def test_cmyk_and_one_bit(tmp_path, picture):
    cmyk = Image.fromarray(picture()).convert("CMYK")
    assert close(decode(save(tmp_path / "a.jpg", cmyk, quality=98, subsampling=0)), picture(), 8)
    bits = Image.fromarray(picture()[..., 2] > 100)
    assert set(np.unique(decode(save(tmp_path / "b.png", bits)))) == {0, 255}


def test_first_frame_of_an_animation(tmp_path, picture):
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    path = save(tmp_path / "a.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(path) == picture()).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_corrupt(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{ending}", Image.fromarray(noise))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptImage) as caught:
        decode(path)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    if share == 0:
        assert caught.value.reason == "empty file (0 bytes)"


def test_jpeg_without_its_end_is_not_taken_for_whole(tmp_path, picture):
    path = save(tmp_path / "a.jpg", Image.fromarray(picture()))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CorruptImage, match="truncated"):
        decode(path)


def test_what_is_no_image_is_corrupt(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    for read in (decode, read_shape):
        with pytest.raises(CorruptImage, match="not an image in any known format"):
            read(tmp_path / "a.jpg")
    with pytest.raises(CorruptImage, match="file is missing"):
        decode(tmp_path / "missing.jpg")


def test_float_and_wide_integers_are_refused_not_shown_white(tmp_path):
    floats = Image.fromarray(np.linspace(0, 5000, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(CorruptImage, match="floating-point"):
        decode(save(tmp_path / "a.tif", floats))
    wide = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(CorruptImage, match="from 0 to 70000"):
        decode(save(tmp_path / "b.tif", wide))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_decompression_bombs_are_refused_by_the_header(tmp_path, monkeypatch, picture, ending):
    path = save(tmp_path / f"a.{ending}", Image.fromarray(picture()))
    monkeypatch.setattr(module, "_MAX_PIXELS", 800)
    with pytest.raises(CorruptImage, match="24 x 36 = 864 pixels, more than 800"):
        decode(path)


def test_real_bomb_sizes_are_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(CorruptImage):
        decode(tmp_path / "a.png")


def test_header_and_pixels_agree_on_the_shape(tmp_path, picture):
    colour, grey = Image.fromarray(picture()), Image.fromarray(picture()[..., 0])
    made = {"jpg": [colour, grey, colour.convert("CMYK")], "png": [colour, grey, colour.quantize(8)]}
    made["tif"] = [colour, grey, Image.fromarray(picture()[..., 0].astype(np.uint16))]
    for ending, images in made.items():
        for number, image in enumerate(images):
            for exif in (None, EXIF_TURNED):
                path = tmp_path / f"{number}-{exif is None}.{ending}"
                save(path, image, **({} if exif is None else {"exif": exif}))
                assert read_shape(path) == decode(path).shape, path


def preprocessing(size: tuple[int, int], channels: int = 3, crop_pct: float = 0.875) -> Preprocessing:
    return Preprocessing(size, (0.5,) * channels, (0.5,) * channels, crop_pct)


def fit(image: np.ndarray, wanted: Preprocessing) -> np.ndarray:
    return cover(to_channels(image, wanted.num_channels), wanted.resize_size)


@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (7, 9), (32, 32), (100, 101), (1, 3), (500, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_always_gives_the_resize_size(picture, shape, channels):
    for source in (picture(*shape), picture(*shape)[..., :1]):
        before = source.copy()
        image = fit(source, preprocessing((28, 21), channels))
        assert image.shape == (32, 24, channels)
        assert image.dtype == np.uint8
        assert (source == before).all()


@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (7, 9), (32, 32), (101, 100), (1, 300), (500, 33)])
@pytest.mark.parametrize("size", [(28, 28), (21, 32), (40, 13)])
def test_covering_comes_before_the_crop(picture, shape, size):
    image = picture(*shape)
    scaled = scale_to_cover(image, size)
    assert scaled.shape[0] == size[0] or scaled.shape[1] == size[1]
    assert min(np.subtract(scaled.shape[:2], size)) == 0 and max(np.subtract(scaled.shape[:2], size)) >= 0
    assert (cover(scaled, size) == cover(image, size)).all()
    assert (scale_to_cover(scaled, size) == scaled).all()


def test_fit_keeps_the_centre_and_the_aspect_ratio():
    image = np.zeros((64, 128, 1), dtype=np.uint8)
    image[:, 32:96] = 255  # the middle square
    assert (fit(image, preprocessing((28, 28), 1)) == 255).all()


def test_an_image_of_the_right_size_is_untouched(picture):
    image = picture(32, 32)
    assert fit(image, preprocessing((28, 28))) is image


def test_shrinking_averages(picture):
    chess = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = fit(chess.astype(np.uint8)[..., None], preprocessing((32, 32), 1, 1.0))
    assert set(np.unique(image)) <= {127, 128}


def test_a_ribbon_does_not_explode():
    image = np.arange(60000, dtype=np.uint32).astype(np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    assert cover(image, (256, 256)).shape == (256, 256, 3)


def test_colour_becomes_grey_and_grey_colour(picture):
    grey = fit(picture(32, 32), preprocessing((28, 28), 1))
    assert close(grey[..., 0], np.asarray(Image.fromarray(picture(32, 32)).convert("L")), 1)
    colour = fit(grey, preprocessing((28, 28), 3))
    assert (colour == grey).all()


def test_centre_crop_works_on_one_image_and_on_many(picture):
    image = picture(10, 12)
    assert (centre_crop(image, (4, 6)) == image[3:7, 3:9]).all()
    assert (centre_crop(np.stack([image, image]), (4, 6))[1] == image[3:7, 3:9]).all()
    with pytest.raises(AssertionError, match="cannot crop"):
        centre_crop(image, (11, 6))


def test_first_frame_of_animations_and_pages(tmp_path):
    frames = [Image.new("RGB", (6, 5), (level, 10, 10)) for level in (200, 100, 50)]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        image = decode(tmp_path / name)
        assert image.shape == (5, 6, 3)
        assert abs(int(image[0, 0, 0]) - 200) <= 2
        assert has_more_frames(tmp_path / name) and has_more_frames((tmp_path / name).read_bytes())
        frames[0].save(tmp_path / name)
        assert not has_more_frames(tmp_path / name)
    frames[0].save(tmp_path / "a.jpg")
    assert not has_more_frames(tmp_path / "a.jpg")


def test_what_is_broken_after_the_first_frame_does_no_harm(tmp_path):
    frames = [Image.effect_noise((40, 40), 50 + number) for number in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) * 2 // 3])
    assert decode(tmp_path / "a.gif").shape == read_shape(tmp_path / "a.gif") == (40, 40, 3)
    assert has_more_frames(tmp_path / "a.gif")


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 5, 13])
def test_arrays_as_images(tmp_path, channels):
    shape = (9, 7) if channels is None else (9, 7, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    assert (decode(tmp_path / "a.npy") == pixels.reshape(9, 7, -1)).all()
    assert read_shape(tmp_path / "a.npy") == (9, 7, channels or 1)
    np.save(tmp_path / "b.npy", pixels.astype(np.uint16) * 257)
    assert (decode(tmp_path / "b.npy") == pixels.reshape(9, 7, -1)).all()


def test_large_images_of_many_channels_shrink_channel_by_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 9), dtype=np.uint8)
    whole = cover(pixels, (10, 15))
    assert whole.shape == (10, 15, 9)
    for channel in range(9):
        assert (whole[..., channel] == cover(pixels[..., [channel]], (10, 15))[..., 0]).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 4), np.float32), "float32 pixels have no stated range; save as uint8 or uint16"),
        (np.zeros((4, 4), bool), "bool pixels have no stated range"),
        (np.zeros((5, 64, 64), np.uint8), "the channels seem to come first"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"an array of shape \(2, 3, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), r"an array of shape \(0, 4\)"),
        (np.array([{"a": 1}], dtype=object), "allow_pickle"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(CorruptImage, match=reason):
        decode(tmp_path / "a.npy")
    with pytest.raises(CorruptImage):
        read_shape(tmp_path / "a.npy")


def test_arrays_that_are_cut_off(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 40), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    for end in (7, 60, 900):
        (tmp_path / "a.npy").write_bytes(content[:end])
        with pytest.raises(CorruptImage):
            decode(tmp_path / "a.npy")


def tiff(pixels: np.ndarray, photometric: int, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed little-endian TIFF of one strip: uint8 or uint16 (H, W, C)."""
    height, width, channels = pixels.shape
    tags = {
        256: [width],
        257: [height],
        258: [8 * pixels.itemsize] * channels,
        259: [1],
        262: [photometric],
        273: [8],
        277: [channels],
        278: [height],
        279: [pixels.nbytes],
        284: [1],
    }
    if extra:
        tags[338] = list(extra)
    body = pixels.tobytes()
    start = 8 + len(body)
    entries, beyond = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack("<I", after + len(beyond)), beyond + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", start) + body + directory + beyond


RGB, GREY = 2, 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_fourth_channel_that_is_no_alpha_is_kept(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    written = pixels.astype(kind) * (257 if kind is np.uint16 else 1)
    assert (decode_bytes(tiff(written, RGB, (0,))) == pixels).all()
    assert read_shape_bytes(tiff(written, RGB, (0,))) == (8, 9, 4)


def test_tiff_with_alpha_is_on_white_as_before():
    pixels = np.full((8, 9, 4), 255, np.uint8)
    pixels[..., :3], pixels[:4, :, 3] = 10, 0
    image = decode_bytes(tiff(pixels, RGB, (2,)))
    assert image.shape == (8, 9, 3)
    assert (image[0] == 255).all() and (image[-1] == 10).all()
    assert decode_bytes(tiff(pixels[..., :3].copy(), RGB)).shape == (8, 9, 3)
    assert decode_bytes(tiff(pixels[..., :1].copy(), GREY)).shape == (8, 9, 1)


@pytest.mark.parametrize(
    ("channels", "photometric", "extra"),
    [(5, RGB, (0, 0)), (13, GREY, (0,) * 12), (2, GREY, (0,)), (4, GREY, (0, 0, 0)), (5, RGB, (2, 0))],
)
def test_tiffs_of_other_channels_are_refused_by_name(channels, photometric, extra):
    pixels = np.zeros((8, 9, channels), np.uint8)
    with pytest.raises(
        CorruptImage, match=rf"a TIFF of {channels} channels cannot be read; save it as \.npy"
    ):
        decode_bytes(tiff(pixels, photometric, extra))


def test_numbers_of_channels_that_do_not_fit():
    with pytest.raises(
        UserError, match=r"the images have 5 channels, the model takes 3\n.*\nFix: --mean and --std with 5"
    ):
        to_channels(np.zeros((4, 4, 5), np.uint8), 3)
    with pytest.raises(UserError, match="the images have 3 channels, the model takes 5"):
        to_channels(np.zeros((4, 4, 3), np.uint8), 5)
    assert to_channels(np.zeros((4, 4, 5), np.uint8), 5).shape == (4, 4, 5)
