from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from warmstart.data import decode as module
from warmstart.data.decode import CorruptImage, centre_crop, cover, decode, fit, read_shape
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


@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (7, 9), (32, 32), (100, 101), (1, 3), (500, 33)])
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_always_gives_the_resize_size(picture, shape, channels):
    for source in (picture(*shape), picture(*shape)[..., :1]):
        before = source.copy()
        image = fit(source, preprocessing((28, 21), channels))
        assert image.shape == (32, 24, channels)
        assert image.dtype == np.uint8
        assert (source == before).all()


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
