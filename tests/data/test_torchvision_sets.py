"""torchvision's sets from small files in their original formats; only checksums of the originals are patched."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import pickle
import threading

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from warmstart.config.schema import DataConfig
from warmstart.data.dataset import open_dataset
from warmstart.data.samples import ArrayPixels, FilePixels
from warmstart.data.sources import open_source
from warmstart.errors import UserError


def idx_bytes(array: np.ndarray) -> bytes:
    shape = b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(shared, tmp_path):
    """900 real images as torchvision lays them out; the root."""
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (shared / "fashion900").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return tmp_path / "root"


def test_real_fashion(fashion, shared):
    source = open_source(f"torchvision:fashionmnist@{fashion}")
    own = open_source(shared / "fashion900")
    assert source.classes[0] == "T-shirt/top" and len(source.classes) == 10
    for split in ("train", "test"):
        found, expected = source.splits[split], own.splits[split]
        assert (found.targets == expected.targets).all()
        assert (found.pixels.read(7) == expected.pixels.read(7)).all()
        assert isinstance(found.pixels, ArrayPixels)
    assert source.notes == (f"fashionmnist: torchvision's files in {fashion}",)
    dataset = open_dataset(DataConfig(path=f"torchvision:FashionMNIST@{fashion}"), seed=0)
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.facts.num_channels == 1
    assert dataset.facts.fingerprint == source.fingerprint


def test_the_default_root_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "warmstart" / "data"
    with pytest.raises(UserError) as caught:
        open_source("torchvision:MNIST")
    assert caught.value.happened == "torchvision:MNIST: Dataset not found"
    assert caught.value.fix == f"fetch it: add --download (to {root})"
    assert not root.exists()


def test_download_fetches_what_is_missing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for prefix, num in (("train", 6), ("t10k", 4)):
        arrays = {"images-idx3": rng.integers(0, 255, (num, 28, 28)), "labels-idx1": np.arange(num) % 2}
        for part, array in arrays.items():
            content = gzip.compress(idx_bytes(array))
            (served / f"{prefix}-{part}-ubyte.gz").write_bytes(content)
            resources.append((f"{prefix}-{part}-ubyte.gz", hashlib.md5(content).hexdigest()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(datasets.KMNIST, "resources", resources)
    place = f"torchvision:KMNIST@{tmp_path / 'root'}"
    try:
        source = open_source(place, download=True)
    finally:
        server.shutdown()
        server.server_close()
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 6, "test": 4}
    assert source.classes == ("o", "ki")
    assert "left out classes without any image: su, tsu" in source.notes[1]
    assert open_source(place).fingerprint == source.fingerprint  # now without the network
    with pytest.raises(UserError, match="look at the network"):
        open_source(f"torchvision:KMNIST@{tmp_path / 'elsewhere'}", download=True)


def test_cifar10_in_its_own_format(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    lists = {}
    for name, rows in (("data_batch_1", slice(0, 2)), ("test_batch", slice(2, 4))):
        flat = images[rows].transpose(0, 3, 1, 2).reshape(2, -1)
        (folder / name).write_bytes(pickle.dumps({"data": flat, "labels": [1, 0]}))
        lists[name] = [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [lists["data_batch_1"]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [lists["test_batch"]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": meta})
    source = open_source(f"torchvision:CIFAR10@{tmp_path}")
    assert source.classes == ("plane", "car")
    assert source.splits["train"].targets.tolist() == [1, 0]
    assert (source.splits["test"].pixels.read(1) == images[3]).all()
    (folder / "test_batch").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"torchvision:CIFAR10@.*: Dataset not found or corrupted"):
        open_source(f"torchvision:CIFAR10@{tmp_path}")


def test_svhn_has_its_channels_first(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io")
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    lists = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        scipy_io.savemat(path, {"X": images, "y": np.array([[1], [10], [2], [1]], np.uint8)})
        lists[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    source = open_source(f"torchvision:SVHN@{tmp_path}")
    assert source.splits["train"].targets.tolist() == [1, 0, 2, 1]  # SVHN writes the digit 0 as 10
    assert (source.splits["test"].pixels.read(2) == images[..., 2]).all()


def test_emnist_letters_has_no_empty_class(tmp_path):
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        for part in ("train", "test"):
            images, labels = np.zeros((52, 28, 28)), np.arange(52) % 26 + 1
            (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
            (raw / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    source = open_source(f"torchvision:EMNIST/letters@{tmp_path}")
    assert source.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert source.splits["train"].targets.tolist() == list(range(26)) * 2
    assert "left out classes without any image: N/A" in source.notes[1]
    with pytest.raises(UserError, match=r"torchvision:EMNIST needs a variant.*\n.*one of byclass, bymerge"):
        open_source(f"torchvision:EMNIST@{tmp_path}")


def test_sets_of_files_stay_files(tmp_path):
    root = tmp_path / "eurosat" / "2750"
    for label in ("Forest", "River"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(root / label / f"{label}_{number}.jpg")
    source = open_source(f"torchvision:EuroSAT@{tmp_path}")
    samples = source.splits["all"]
    assert source.classes == ("Forest", "River")
    assert isinstance(samples.pixels, FilePixels)
    assert samples.ids[0] == "eurosat/2750/Forest/Forest_0.jpg"
    assert samples.pixels.shape(5) == (6, 8, 3)
    assert len(open_source(f"torchvision:EuroSAT@{tmp_path}", group=r"_(\d)\.jpg").splits["all"].groups) == 6


def test_pets_by_their_lists(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    rows = {"trainval": ["Abyssinian_1 1 1 1", "beagle_3 2 2 1"], "test": ["beagle_1 2 2 1"]}
    for split, lines in rows.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            Image.new("RGB", (8, 6)).save(base / "images" / f"{line.split()[0]}.jpg")
    source = open_source(f"torchvision:OxfordIIITPet@{tmp_path}")
    assert source.classes == ("Abyssinian", "Beagle")
    assert {split: samples.targets.tolist() for split, samples in source.splits.items()} == {
        "train": [0, 1],
        "test": [1],
    }


def test_classes_of_several_names(tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03417042"):
            (tmp_path / "imagenette2-160" / split / wnid).mkdir(parents=True)
            Image.new("RGB", (8, 6)).save(tmp_path / "imagenette2-160" / split / wnid / "1.JPEG")
    source = open_source(f"torchvision:Imagenette/160px@{tmp_path}")
    assert source.classes == ("tench", "garbage truck")
    assert sorted(source.splits) == ["train", "val"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FashionMNITS", r"torchvision:FashionMNITS is no data set of torchvision for classification"),
        ("FashionMNITS", r"Did you mean 'FashionMNIST'\?"),
        ("VOCDetection", "is no data set of torchvision"),
        ("Imagenette/160", r"has no variant '160'.*\n.*full, 320px, 160px\nFix: Did you mean '160px'\?"),
        ("MNIST/letters", "torchvision:MNIST has no variant 'letters'"),
        ("ImageNet", "torchvision does not fetch this one"),
    ],
)
def test_names_that_cannot_be_opened(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_source(f"torchvision:{name}@{tmp_path}")


def test_torchvision_sets_have_no_columns(tmp_path):
    with pytest.raises(UserError, match="--label-columns a, b: torchvision:MNIST is no table"):
        open_source("torchvision:MNIST", label_columns=("a", "b"))


def test_every_set_of_the_table_exists_with_its_arguments():
    import inspect

    from warmstart.data.torchvision_sets import _SETS

    for name, own in _SETS.items():
        known = set(inspect.signature(getattr(datasets, name)).parameters) | {"train"}
        given = {key for arguments in own.splits.values() for key in arguments}
        assert given | ({own.variant} if own.variant else set()) <= known, name
