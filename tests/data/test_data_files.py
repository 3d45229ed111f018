"""Parquet, npz and IDX files."""

import gzip
import pickle
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowml.data import Rows, count_rows, idx, npz, parquet
from flowml.errors import DataError


@pytest.fixture
def frame(tmp_path):
    random = np.random.default_rng(0)
    made = pd.DataFrame(
        {
            "a": random.random(100),
            "b": random.integers(0, 9, 100).astype("u1"),
            "y": random.integers(0, 2, 100).astype(bool),
            "s": ["text"] * 100,
        }
    )
    (tmp_path / "set").mkdir()
    for number, part in enumerate((made[:60], made[60:])):
        pq.write_table(
            pa.Table.from_pandas(part, preserve_index=False),
            tmp_path / "set" / f"p{number}.parquet",
            row_group_size=25,
        )
    return made, tmp_path / "set"


@pytest.mark.parametrize(("block_bytes", "partitions"), [(1, 5), (2**26, 2)])
def test_parquet_partitions_are_row_groups(frame, block_bytes, partitions):
    made, folder = frame
    source = parquet(folder, label="y", columns=["a", "b"], block_bytes=block_bytes)
    parts = pickle.loads(pickle.dumps(source)).partitions()
    assert len(parts) == partitions
    assert sum(count_rows(p) for p in parts) == 100
    x, y = Rows.concat([p.read() for p in parts]).value()
    np.testing.assert_array_equal(x, made[["a", "b"]].to_numpy("f4"))
    np.testing.assert_array_equal(y, made["y"])
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert not source.dealt
    assert (
        source.token()
        == parquet(
            folder / "*.parquet", label="y", columns=["a", "b"], block_bytes=block_bytes
        ).token()
    )


def test_parquet_nulls_are_nan_in_features_and_refused_in_labels(tmp_path):
    path = tmp_path / "n.parquet"
    pq.write_table(pa.table({"a": [1, None, 3], "y": [0, 1, None]}), path)
    (x,) = (p.read().value() for p in parquet(path, columns=["a"]).partitions())
    np.testing.assert_array_equal(x, [[1], [np.nan], [3]])
    with pytest.raises(DataError, match="column 'y', row 2: a value must fit int64, got nan"):
        parquet(path, label="y").rows()
    _, y = parquet(path, label="y", label_dtype="float32").rows().value()
    assert np.isnan(y[2])


def test_parquet_mistakes_are_named(frame, tmp_path):
    _, folder = frame
    with pytest.raises(DataError, match=r"column 's': a column must hold numbers, got .*string"):
        parquet(folder, label="y")
    with pytest.raises(DataError, match=r"got 'aa'. It has 4, such as: a"):
        parquet(folder, columns=["aa"])
    (tmp_path / "not.parquet").write_text("a,b\n")
    with pytest.raises(DataError, match=r"not\.parquet: the file must be Parquet"):
        parquet(tmp_path / "not.parquet")
    pq.write_table(pa.table({"b": [1]}), folder / "p2.parquet")
    with pytest.raises(DataError, match=r"p2\.parquet: a column that the file has is needed"):
        parquet(folder, columns=["a"]).rows()


def test_pyarrow_missing_says_how_to_get_it(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError) as caught:
        parquet(frame[1])
    expected = 'Parquet files need pandas and pyarrow: pip install "flowml[dataframe]"'
    assert str(caught.value) == expected


def test_npz_by_name(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, X=np.eye(3), y=np.arange(3), w=np.ones(3))
    source = npz(path, label="y")
    assert source.dealt
    assert [len(c) for c in source.rows().value()] == [3, 3]
    assert len(npz(path, label=None).rows().value()) == 3
    assert npz(path, weight="w").rows().examples() == 3.0
    assert source.rows() is source.rows()
    assert source.token() == npz(path).token() != npz(path, label=None).token()
    assert len(source.partitions()[0].read()) == 3
    with pytest.raises(DataError, match="must hold 'target', got arrays such as X, y, w"):
        npz(path, label="target").rows()


def test_npz_mistakes_are_named(tmp_path):
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(DataError, match="named arrays is needed, got one bare array"):
        npz(tmp_path / "one.npy").rows()
    np.savez(tmp_path / "o.npz", X=np.array([{}], object), y=[1])
    with pytest.raises(DataError, match=r"o\.npz: the file must be a \.npz archive of numbers"):
        npz(tmp_path / "o.npz").rows()
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(DataError, match=r"bad\.npz"):
        npz(tmp_path / "bad.npz").rows()
    with pytest.raises(DataError, match=r"fashio\.npz: no such file"):
        npz(tmp_path / "fashio.npz")


def idx_bytes(array, kind=8):
    head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def test_idx_images_are_flattened_and_scaled(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (tmp_path / "l").write_bytes(idx_bytes(labels))
    x, y = idx(tmp_path / "i.gz", tmp_path / "l", scale=1 / 255).rows().value()
    np.testing.assert_array_equal(x, images.reshape(5, 12).astype("f4") * np.float32(1 / 255))
    np.testing.assert_array_equal(y, labels)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    raw = idx(tmp_path / "i.gz").rows().value()
    assert (raw.dtype, raw.shape) == (np.uint8, (5, 12))


def test_idx_big_endian_values_become_native(tmp_path):
    values = np.array([[1.5, -2]], ">f4")
    (tmp_path / "f").write_bytes(idx_bytes(values, 13))
    got = idx(tmp_path / "f").rows().value()
    np.testing.assert_array_equal(got, values)
    assert got.dtype.isnative


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "begins with 00 00, a type and a rank, got 68 65 6c 6c"),
        (idx_bytes(np.zeros((2, 2), "u1"))[:-1], r"shape \(2, 2\) has 16 bytes, got 15"),
    ],
)
def test_idx_mistakes_are_named(tmp_path, content, message):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(DataError, match=message):
        idx(tmp_path / "bad").rows()


def test_idx_lengths_must_agree(tmp_path):
    (tmp_path / "i").write_bytes(idx_bytes(np.zeros((2, 2), "u1")))
    (tmp_path / "l").write_bytes(idx_bytes(np.zeros(3, "u1")))
    with pytest.raises(DataError, match="same number of rows, got 2 and 3"):
        idx(tmp_path / "i", tmp_path / "l").rows()
