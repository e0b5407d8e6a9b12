from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from warmstart.data.sources import open_source
from warmstart.errors import UserError

INFO = {
    "features": {
        "image": {"_type": "Image"},
        "label": {"names": ["wolf", "fox"], "_type": "ClassLabel"},
    }
}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 7, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save(folder, num: int, info: dict = INFO, in_schema: bool = False, num_files: int = 1, start: int = 0):
    """What `datasets.Dataset.save_to_disk` writes: streams of batches, state.json, dataset_info.json."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{num_files:05d}.arrow" for number in range(num_files)]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())])
    if in_schema:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": info})})
    for rows, name in zip(np.array_split(np.arange(start, start + num), num_files), names, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for part in np.array_split(rows, 2):
                images = [{"bytes": png(int(row)), "path": None} for row in part]
                labels = [int(row) % 2 for row in part]
                columns = [pa.array(images, image), pa.array(labels, pa.int64())]
                writer.write_batch(pa.record_batch(columns, schema=schema))
    (folder / "dataset_info.json").write_text(json.dumps({} if in_schema else info))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    return folder


@pytest.mark.parametrize("in_schema", [False, True])
def test_one_data_set(tmp_path, in_schema):
    source = open_source(save(tmp_path / "saved", 10, in_schema=in_schema, num_files=2))
    samples = source.splits["all"]
    assert source.classes == ("wolf", "fox")
    assert samples.targets.tolist() == [0, 1] * 5
    assert [int(samples.pixels.read(index)[0, 0, 0]) for index in range(10)] == list(range(10))
    assert samples.pixels.shape(3) == (6, 7, 3)
    assert samples.subset(np.array([7, 2])).pixels.read(0)[0, 0, 0] == 7
    twin = save(tmp_path / "twin" / "saved", 10, in_schema=in_schema, num_files=2)
    assert open_source(twin).fingerprint == source.fingerprint
    assert open_source(save(tmp_path / "other", 12, num_files=2)).fingerprint != source.fingerprint


def test_a_dictionary_of_splits(tmp_path):
    root = tmp_path / "saved"
    for split, num in (("train", 6), ("validation", 2), ("test", 4)):
        save(root / split, num)
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    source = open_source(root)
    assert {split: len(samples) for split, samples in source.splits.items()} == {
        "train": 6,
        "val": 2,
        "test": 4,
    }
    assert source.splits["test"].ids[0] == "test/000000"
    (root / "dataset_dict.json").write_text('{"splits": ["train", "unsupervised"]}')
    with pytest.raises(UserError, match=r"unsupervised/state.json cannot be read"):
        open_source(root)
    (root / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match=r"names no splits"):
        open_source(root)


def test_data_sets_that_are_not_whole(tmp_path):
    root = save(tmp_path / "saved", 10, num_files=2)
    first = root / "data-00000-of-00002.arrow"
    content = first.read_bytes()
    first.write_bytes(content[:200])
    with pytest.raises(
        UserError, match=r"00000-of-00002.arrow cannot be read: .*\nExpected: an Arrow stream, whole"
    ):
        open_source(root)
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        open_source(root)
    first.unlink()
    with pytest.raises(UserError, match=r"saved lacks data-00000-of-00002.arrow"):
        open_source(root)
    (root / "state.json").write_text('{"_data_files": [{"filename": "x"}], "_indices_data_files": ["y"]}')
    with pytest.raises(UserError, match=r"list of indices .*\n.*\nFix: save it again: .*flatten_indices"):
        open_source(root)
    (root / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(UserError, match="lists no data files"):
        open_source(root)
    (root / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json cannot be read"):
        open_source(root)
