"""Data sets with masks as `open_dataset` sees them: classes, counts, splits, and what is refused before a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warmstart.config.schema import DataConfig
from warmstart.data.dataset import Dataset, Recorded, open_dataset
from warmstart.data.masks import as_ids, is_wide
from warmstart.data.store import StoredPixels
from warmstart.data.store_plan import plan_store
from warmstart.errors import UserError
from warmstart.records import Preprocessing

SMALL = Preprocessing((16, 20), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def root(write_pairs) -> Path:
    return write_pairs({("images", "masks"): 30})


def settings_of(root: Path, **values) -> DataConfig:
    return DataConfig.model_validate({"path": str(root), "cache_dir": str(root.parent / "cache"), **values})


def opened(settings: DataConfig, **options) -> Dataset:
    return open_dataset(settings, 0, store=lambda _: plan_store(settings, SMALL), **options)


def masks_of(root: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(root).as_posix().replace("masks", "images"): np.asarray(Image.open(path))
        for path in root.rglob("masks/*.png")
    }


def change(root: Path, how: Callable[[np.ndarray], np.ndarray], num: int = 1000) -> None:
    for path in sorted(root.rglob("masks/*.png"))[:num]:
        Image.fromarray(how(np.asarray(Image.open(path)))).save(path)


def test_classes_targets_and_pixels_are_counted(root):
    (root / "classes.txt").write_text("sky\nroad\ntree\nvoid\n")
    change(root, lambda ids: np.where(np.arange(56) < 3, 3, ids).astype(np.uint8))
    dataset = opened(settings_of(root, ignore=3))
    assert dataset.classes == ("sky", "road", "tree") and dataset.ignore == dataset.facts.ignore == 3
    assert sum(map(len, dataset.splits.values())) == 30
    masks = masks_of(root)
    for split, samples in dataset.splits.items():
        expected = np.array([[(masks[name] == k).any() for k in range(3)] for name in samples.ids])
        assert samples.targets.dtype == np.uint8 and (samples.targets == expected).all()
        assert dataset.facts.counts[split] == dict(
            zip(dataset.classes, expected.sum(0).tolist(), strict=True)
        )
    numbers = sum(np.bincount(masks[name].ravel(), minlength=4) for name in dataset.splits["train"].ids)
    names = ("sky", "road", "tree", "(ignored)")
    assert dataset.facts.pixels == dict(zip(names, numbers.tolist(), strict=True))
    share = 3 / 56
    note = f"index masks of 3 classes; the id 3 of {share:.1%} of the pixels is ignored"
    assert note in dataset.facts.notes
    (histogram,) = [told for told in dataset.facts.notes if told.startswith("pixels by id: 0 ")]
    assert f"3 (ignored) {share:.1%}" in histogram


@pytest.mark.parametrize("cache", ["auto", "ram", "off"])
def test_a_store_changes_nothing_but_the_speed(root, cache):
    plain = open_dataset(settings_of(root), 0)
    for _ in range(2):
        dataset = opened(settings_of(root, cache=cache))
        assert dataset.facts == plain.facts
        for split, samples in dataset.splits.items():
            other = plain.splits[split]
            assert samples.ids == other.ids and (samples.targets == other.targets).all()
            assert (
                isinstance(samples.masks, StoredPixels)
                == isinstance(samples.pixels, StoredPixels)
                == (cache != "off")
            )
            assert (
                isinstance(samples.masks, StoredPixels)
                or (samples.masks.read(0) == other.masks.read(0)).all()
            )


def test_what_was_counted_is_not_read_again(root, monkeypatch):
    first = opened(settings_of(root))
    monkeypatch.setattr("warmstart.data.masks.decode_mask", None)
    assert opened(settings_of(root)).facts == first.facts
    monkeypatch.undo()
    path = root / "masks" / "07.png"
    Image.fromarray(np.full((40, 56), 1, np.uint8)).save(path)
    again = opened(settings_of(root))
    assert again.facts.fingerprint != first.facts.fingerprint
    ((held,),) = [
        samples.targets[[name == "images/07.png" for name in samples.ids]].tolist()
        for samples in again.splits.values()
        if "images/07.png" in samples.ids
    ]
    assert held == [0, 1, 0]


def test_size_of_the_input_and_of_the_store_do_not_change_the_splits(root):
    other = Preprocessing((9, 9), (0.5,) * 3, (0.5,) * 3)
    settings = settings_of(root)
    ids = [
        {split: samples.ids for split, samples in open_dataset(settings, 0, store=store).splits.items()}
        for store in (None, lambda _: plan_store(settings, SMALL), lambda _: plan_store(settings, other))
    ]
    assert ids[0] == ids[1] == ids[2]


def test_sets_of_classes_are_spread_over_the_splits(write_pairs):
    root = write_pairs({("images", "masks"): 60})
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        ids = np.zeros((40, 56), np.uint8)
        ids[:5] = 1
        ids[-5:] = 2 if number % 3 == 0 else 0
        Image.fromarray(ids).save(path)
    facts = opened(settings_of(root, train_ratio=0.6, val_ratio=0.2)).facts
    assert {split: row["2"] for split, row in facts.counts.items()} == {"train": 12, "val": 4, "test": 4}
    facts = opened(settings_of(root, train_ratio=0.6, val_ratio=0.2, limit=9)).facts
    assert facts.counts["train"] == {"0": 9, "1": 9, "2": 3}
    assert facts.pixels is not None and sum(facts.pixels.values()) == 9 * 40 * 56


def test_a_resumed_run_sees_the_same_data(root):
    (root / "masks" / "05.png").write_bytes(b"no mask")
    (root / "images" / "06.png").write_bytes(b"no image")
    settings = settings_of(root, max_corrupt=0.1)
    first = opened(settings)
    assert [name for name, _ in first.facts.quarantined] == ["images/05.png", "images/06.png"]
    assert first.facts.quarantined[0][1].startswith("its mask: ")
    for cache in ("auto", "off"):
        again = opened(
            settings_of(root, max_corrupt=0.1, cache=cache), recorded=Recorded(first.facts.quarantined)
        )
        assert again.facts == first.facts and again.native == first.native
        for split, samples in again.splits.items():
            assert samples.ids == first.splits[split].ids
            assert (samples.targets == first.splits[split].targets).all()
    (root / "masks" / "09.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"09.png was readable when the run started(.|\n)*empty file"):
        opened(settings, recorded=Recorded(first.facts.quarantined))


def test_unreadable_masks_count_like_unreadable_images(root):
    (root / "masks" / "05.png").write_bytes(b"no mask")
    with pytest.raises(
        UserError, match=r"1 of 30 images \(3.3%\) are unreadable: images/05.png \(its mask: not an image"
    ):
        opened(settings_of(root))


def test_groups_keep_masks_with_their_images(write_pairs):
    root = write_pairs({("images/a", "masks/a"): 8, ("images/b", "masks/b"): 8, ("images/c", "masks/c"): 8})
    dataset = opened(settings_of(root, group="images/(.)/"))
    for samples in dataset.splits.values():
        assert len({name[7] for name in samples.ids}) == 1
        image, mask = samples.pixels.read(0), as_ids(samples.masks.read(0))
        pure = (image == 255).any(-1) & (image.astype(int).sum(-1) == 255)
        assert pure.mean() > 0.5 and (image.argmax(-1) == mask)[pure].all()


def shifted(ids: np.ndarray) -> np.ndarray:
    return ids + np.uint8(1)


@pytest.mark.parametrize(
    ("how", "values", "parts"),
    [
        (
            lambda ids: np.minimum(ids, 1) * 255,
            {},
            ("one class only: 0 ", "255 (ignored)", "--mask-remap 255=1"),
        ),
        (
            lambda ids: np.minimum(ids, 1) * 255,
            {"mask_classes": "a,b"},
            ("one class only", "--mask-remap 255=1"),
        ),
        (
            lambda ids: np.minimum(ids, 1) * 255,
            {"ignore": 9},
            ("ids between 0 and 255", "--mask-remap 255=1"),
        ),
        (lambda ids: ids * 100, {}, ("3 ids between 0 and 200: 0 ", "100 ", "--mask-remap 100=1,200=2")),
        (lambda ids: ids, {"mask_classes": "a,b"}, ("no class: 2", "all of", "0 to 1 (a, b)", "--ignore 2")),
        (shifted, {"mask_classes": "a,b,c"}, ("no class: 3", "1=0,2=1,3=2")),
        (lambda ids: ids + 7 * (ids == 2), {"mask_classes": "a,b", "mask_remap": "0=7"}, ("no class: 7, 9",)),
        (
            lambda ids: ids,
            {"ignore": 1},
            ("ignored id 1 lies among", "1 (ignored)", "--mask-remap 1=255,2=1"),
        ),
        (lambda ids: ids * 0, {}, ("one class only: 0 100.0%",)),
        (lambda ids: ids, {"mixup": 0.2}, ("--mixup 0.2", "--cutmix")),
        (lambda ids: ids, {"flip_pairs": "1:3"}, ("--flip-pairs: '3' are no classes",)),
        (lambda ids: np.dstack([ids] * 3), {}, ("unreadable", "no colour table")),
    ],
)
def test_ids_that_cannot_be_meant(root, how, values, parts):
    change(root, lambda ids: np.asarray(how(ids), np.uint8))
    with pytest.raises(UserError) as caught:
        opened(settings_of(root, **values))
    for part in parts:
        assert part in str(caught.value)


def test_a_stray_id_is_a_mistake_in_a_mask_that_is_named(root):
    path = root / "masks" / "07.png"
    ids = np.array(Image.open(path))
    ids[3, 4] = 200
    Image.fromarray(ids.astype(np.uint8)).save(path)
    with pytest.raises(UserError) as caught:
        opened(settings_of(root))
    assert "only these masks hold 200: images/07.png. Mend them" in str(caught.value)
    assert "--mask-remap 200=255; if they are classes: --mask-remap 200=3" in str(caught.value)
    assert opened(settings_of(root, mask_remap="200=255")).classes == ("0", "1", "2")


def test_what_the_errors_propose_works(root):
    change(root, lambda ids: np.minimum(ids, 1) * 255)
    assert opened(settings_of(root, mask_remap="255=1")).classes == ("0", "1")
    change(root, lambda ids: np.where(ids == 255, 11, ids).astype(np.uint8))
    change(root, lambda ids: np.where(np.arange(56) < 30, 1, ids).astype(np.uint8))
    dataset = opened(settings_of(root, ignore=11))
    assert (
        dataset.classes == ("0", "1") and dataset.mask_rules is not None and dataset.mask_rules.ignore == 11
    )


def test_masks_of_colours(root):
    colours = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)
    plain = opened(settings_of(root)).splits["train"]
    change(root, lambda ids: colours[ids])
    found = opened(settings_of(root, mask_colours="0.0.0=0,128.64.128=1,0.0.142=2")).splits["train"]
    assert found.ids == plain.ids and (found.targets == plain.targets).all()
    assert all((found.masks.read(row) == plain.masks.read(row)).all() for row in range(len(found)))


def test_masks_of_another_size_are_named(root):
    change(root, lambda ids: ids[::2, ::2], 2)
    with pytest.raises(
        UserError, match=r"2 of 30 masks are not of the size.*00.png \(40 x 56, its mask 20 x 28\)"
    ):
        opened(settings_of(root))
    change(root, lambda ids: np.zeros((56, 40), np.uint8), 2)
    with pytest.raises(UserError, match="turned by their EXIF"):
        opened(settings_of(root))


def test_many_classes_take_two_bytes(root):
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        ids = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) % 300
        ids[0] = 999 if number % 2 else 0
        Image.fromarray(ids).save(path)
    dataset = opened(settings_of(root, ignore=999))
    assert len(dataset.classes) == 300 and dataset.ignore == 999
    samples = dataset.splits["train"]
    assert is_wide(samples.masks) and samples.masks.read(0).shape[2] == 2
    with pytest.raises(UserError, match=r"ignored id 255 lies among the ids(.|\n)*--ignore 65535"):
        opened(settings_of(root, mask_remap="999=299"))


def test_data_to_evaluate_on_may_lack_classes(root):
    change(root, lambda ids: ids * 0)
    settings = settings_of(root, mask_classes="a,b,c")
    dataset = open_dataset(settings, 0, for_training=False)
    assert dataset.classes == ("a", "b", "c") and list(dataset.splits) == ["all"]
    assert dataset.facts.pixels == {"a": 30 * 40 * 56, "b": 0, "c": 0, "(ignored)": 0}
    shutil.rmtree(root / "masks")
    with pytest.raises(UserError, match="has one class only"):
        open_dataset(settings.model_copy(update={"mask_classes": ()}), 0)


@pytest.mark.shared
@pytest.mark.parametrize("classes", ["", "sky,building,pole,road,pavement,tree,sign,fence,car,person,bike"])
def test_camvid(shared, tmp_path, classes):
    settings = settings_of(shared / "camvid", ignore=11, mask_classes=classes, cache_dir=str(tmp_path))
    dataset = opened(settings)
    assert len(dataset.classes) == 11 and dataset.native
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 367,
        "val": 101,
        "test": 233,
    }
    assert dataset.facts.pixels is not None and sum(dataset.facts.pixels.values()) == 367 * 360 * 480
    assert dataset.facts.pixels["(ignored)"] == 2503995
    with pytest.raises(UserError, match=r"no class: 11(.|\n)*--ignore 11"):
        opened(
            settings_of(
                shared / "camvid", mask_classes=classes or "a,b,c,d,e,f,g,h,i,j,k", cache_dir=str(tmp_path)
            )
        )
