from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from warmstart.data.mask_settings import MaskSettings
from warmstart.data.masks import as_ids
from warmstart.data.sources import open_source
from warmstart.errors import UserError

SPLIT = {("train/images", "train/masks"): 3, ("val/images", "val/masks"): 2}


def sizes(source) -> dict[str, int]:
    return {split: len(samples) for split, samples in source.splits.items()}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (SPLIT, {"train": 3, "val": 2}),
        ({("images/train", "masks/train"): 3, ("images/val", "masks/val"): 2}, {"train": 3, "val": 2}),
        ({("images", "masks"): 3}, {"all": 3}),
        ({("Images", "labels"): 3}, {"all": 3}),
        ({("img/a", "annotations/a"): 2, ("img/b", "annotations/b"): 2}, {"all": 4}),
        ({("train/images", "train/masks"): 3}, {"all": 3}),
        (
            {("leftImg8bit/train/x", "gtFine/train/x"): 2, ("leftImg8bit/val/x", "gtFine/val/x"): 1},
            {"train": 2, "val": 1},
        ),
    ],
)
def test_layouts(write_pairs, layout, expected):
    root = write_pairs(layout)
    source = open_source(root)
    assert sizes(source) == expected
    assert source.classes == () and source.ignore == 255
    for samples in source.splits.values():
        assert samples.targets.shape == (len(samples), 0)
        for index, name in enumerate(samples.ids):
            image = np.asarray(Image.open(root / name))
            assert (image.argmax(2) == as_ids(samples.masks.read(index))).all()


@pytest.mark.parametrize(
    "ending", ["_mask.png", "_labelIds.png", "-label.png", "_L.png", ".tif", "_gtFine_labelIds.png"]
)
def test_names_of_masks_may_say_that_they_are_masks(write_pairs, ending):
    root = write_pairs({("images", "masks"): 3}, ending=ending)
    for name in ("00_gtFine_color", "01_gtFine_instanceIds"):
        Image.new("RGB", (3, 3)).save(root / "masks" / f"{name}.png")
    source = open_source(root)
    assert sizes(source) == {"all": 3}
    assert "ignored 2 files that are neither: 00_gtFine_color.png, 01_gtFine_instanceIds.png" in source.notes


def test_a_city_of_photographs(write_pairs):
    root = write_pairs({("leftImg8bit", "gtFine"): 2}, ending="_gtFine_labelTrainIds.png")
    for path in sorted((root / "leftImg8bit").iterdir()):
        path.rename(path.with_name(f"{path.stem}_leftImg8bit.png"))
    assert open_source(root).splits["all"].ids == (
        "leftImg8bit/00_leftImg8bit.png",
        "leftImg8bit/01_leftImg8bit.png",
    )


def test_masks_where_the_user_says(write_pairs):
    root = write_pairs({("train/images", "train/outlines"): 3, ("val/images", "val/outlines"): 2})
    with pytest.raises(UserError, match="no class folders"):
        open_source(root / "train" / "outlines")
    assert sizes(open_source(root, masks=MaskSettings("outlines"))) == {"train": 3, "val": 2}
    with pytest.raises(
        UserError, match=r"--masks outline: there is no such folder(.|\n)*Did you mean 'outlines'"
    ):
        open_source(root, masks=MaskSettings("outline"))


def test_masks_somewhere_else(write_pairs, tmp_path):
    root = write_pairs({("photos/train", "marks/train"): 2, ("photos/val", "marks/val"): 2})
    source = open_source(root / "photos", masks=MaskSettings(str(root / "marks")))
    assert sizes(source) == {"train": 2, "val": 2} and source.splits["val"].ids == (
        "val/00.png",
        "val/01.png",
    )


def test_one_of_two_folders_of_masks(write_pairs):
    root = write_pairs({("images", "masks"): 3, ("images/", "labels"): 3})
    with pytest.raises(UserError, match=r"holds labels, masks(.|\n)*--masks NAME"):
        open_source(root)
    assert len(open_source(root, masks=MaskSettings("labels")).splits["all"]) == 3


def test_test_images_without_masks_are_left_out(write_pairs):
    root = write_pairs(SPLIT)
    (root / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "test" / "images" / "a.png")
    source = open_source(root)
    assert sizes(source) == {"train": 3, "val": 2}
    assert "pairs: test has no masks and is left out" in source.notes
    (root / "test").rename(root / "test0")
    (root / "val" / "masks").rename(root / "val" / "else")
    with pytest.raises(UserError, match="there are no masks for val"):
        open_source(root)


def test_everything_without_a_partner_is_named(write_pairs):
    root = write_pairs(SPLIT)
    (root / "train" / "masks" / "01.png").unlink()
    (root / "train" / "images" / "02.png").unlink()
    (root / "val" / "images" / "new.jpg").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        open_source(root)
    message = str(caught.value)
    assert "3 problems" in message
    assert "1 of 2 images in" in message and "have no mask: 01.png" in message
    assert "1 of 2 masks in" in message and "have no image: 02.png" in message
    assert "1 of 3 images in" in message and "have no mask: new.jpg" in message


def test_two_masks_of_one_image(write_pairs):
    root = write_pairs({("images", "masks"): 2}, ending="_labelIds.png")
    write_pairs({("images", "masks"): 1}, ending="_labelTrainIds.png")
    with pytest.raises(UserError, match="several masks for 1 images: 00"):
        open_source(root)
    root = write_pairs({("images", "masks"): 2})
    np.save(root / "masks" / "01.npy", np.zeros((40, 56), np.uint8))
    with pytest.raises(UserError, match="several masks for 1 images: 01"):
        open_source(root)


def test_boxes_are_no_masks(write_pairs):
    root = write_pairs({("images", "labels"): 2})
    for path in sorted((root / "labels").iterdir()):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=r"labels holds no masks \(found 00.txt, 01.txt\)"):
        open_source(root)


def test_settings_of_masks_are_refused_where_there_are_none(write_folders):
    root = write_folders({"a": 2, "b": 2})
    with pytest.raises(UserError, match=r"--ignore 11, --mask-remap 255=1: .* has no masks"):
        open_source(root, masks=MaskSettings(ignore=11, remap=((255, 1),)))


def test_the_fingerprint_knows_masks_and_their_meaning(write_pairs):
    root = write_pairs({("images", "masks"): 3})
    settings = [
        MaskSettings(),
        MaskSettings(ignore=11),
        MaskSettings(classes=("a", "b", "c")),
        MaskSettings(remap=((2, 1),)),
    ]
    found = [open_source(root, masks=one).fingerprint for one in settings]
    assert len(set(found)) == 4 and open_source(root).fingerprint == found[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 3, (40, 56), np.uint8)).save(
        root / "masks" / "00.png"
    )
    assert open_source(root).fingerprint != found[0]


@pytest.mark.shared
def test_camvid(shared):
    source = open_source(shared / "camvid", masks=MaskSettings(ignore=11))
    assert sizes(source) == {"train": 367, "val": 101, "test": 233} and source.ignore == 11
    assert source.splits["train"].ids[0] == "train/images/0001TP_006690.jpg"
