"""The same readers on real files, where FLOWML_DATA names the folder that holds them."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from flowml.data import csv, idx, libsvm
from flowml.errors import DataError

FOLDER = Path(os.environ.get("FLOWML_DATA", "nowhere"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="FLOWML_DATA does not name the folder of real data"
)


def test_a9a():
    x, y = libsvm(FOLDER / "a9a" / "a9a.gz").rows().value()
    assert (x.shape, x.nnz) == ((32561, 123), 451592)
    assert (y == 1).sum() == 7841
    test, labels = libsvm(FOLDER / "a9a" / "a9a.t.gz", n_features=123).rows().value()
    assert (test.shape, int((labels == 1).sum())) == ((16281, 123), 3846)


def test_a9a_plain_is_cut(tmp_path):
    (tmp_path / "a9a").write_bytes(gzip.decompress((FOLDER / "a9a" / "a9a.gz").read_bytes()))
    parts = libsvm(tmp_path / "a9a", block_bytes=2**18).partitions()
    assert len(parts) > 3
    assert sum(len(p.read()) for p in parts) == sum(p.rows for p in parts) == 32561
    with pytest.raises(DataError, match=r"a9a:19610: .*n_features=122, got feature 123"):
        [p.read() for p in libsvm(tmp_path / "a9a", 122, block_bytes=2**18).partitions()]


def test_fashion_mnist():
    folder = FOLDER / "fashion-mnist"
    images, labels = (folder / f"t10k-{n}-ubyte.gz" for n in ("images-idx3", "labels-idx1"))
    x, y = idx(images, labels, 1 / 255).rows().value()
    assert (x.shape, x.dtype) == ((10000, 784), np.float32)
    assert np.bincount(y).tolist() == [1000] * 10


def test_airlines():
    path = FOLDER / "airlines44k" / "airlines.csv.gz"
    columns = ["Year", "Month", "DayofMonth", "DayOfWeek", "CRSDepTime", "Distance"]
    with pytest.raises(DataError, match=r"csv.gz:27988 byte \d+: .*0xE4.*encoding='latin-1'"):
        csv(path, columns=columns).rows()
    x = csv(path, columns=columns, encoding="latin-1").rows().value()
    assert x.shape == (43978, 6)
    with pytest.raises(DataError, match=r"csv.gz:2: column 'IsDepDelayed' must hold numbers, got"):
        csv(path, columns=columns, label="IsDepDelayed", encoding="latin-1").rows()
