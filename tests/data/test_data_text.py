"""CSV and LIBSVM: every cut gives the same rows, and every mistake names its line."""

import gzip
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_svmlight_file

from flowml.data import Partition, Rows, count_rows, csv, libsvm
from flowml.errors import DataError


def everything(source):
    """Read all partitions; each must have as many rows as were counted."""
    found = []
    for partition in source.partitions():
        assert isinstance(partition, Partition)
        shipped = pickle.loads(pickle.dumps(partition))
        rows = shipped.read()
        assert len(rows) == count_rows(partition)
        found.append(rows)
    return Rows.concat(found)


@pytest.fixture
def table(tmp_path):
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": random.random(200).round(3),
            "b": random.integers(0, 99, 200),
            "y": random.integers(0, 3, 200),
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    return frame, tmp_path / "table.csv"


@pytest.mark.parametrize("block_bytes", [1, 7, 64, 1000, 2**26])
def test_csv_cut_anywhere_is_the_same(table, block_bytes):
    frame, path = table
    source = csv(path, label="y", block_bytes=block_bytes)
    x, y = everything(source).value()
    np.testing.assert_array_equal(x, frame[["a", "b"]].to_numpy("f4"))
    np.testing.assert_array_equal(y, frame["y"])
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert not source.dealt


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(
        st.tuples(st.integers(-9, 99), st.sampled_from(["", "\n", " \n", "\r\n"])),
        min_size=1,
        max_size=12,
    ),
    block_bytes=st.integers(1, 40),
    end=st.booleans(),
)
def test_blank_lines_and_ends_do_not_count(tmp_path_factory, lines, block_bytes, end):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    text = "v,w\r\n" + "".join(f"{v},1\n{blank}" for v, blank in lines)
    path.write_bytes((text if end else text.rstrip("\r\n ")).encode())
    x = everything(csv(path, block_bytes=block_bytes)).value()
    np.testing.assert_array_equal(x[:, 0], [v for v, _ in lines])


def test_csv_columns_by_name_and_position(table):
    frame, path = table
    x, y = everything(csv(path, label=-1, columns=["b"], dtype="float64")).value()
    np.testing.assert_array_equal(x, frame[["b"]])
    np.testing.assert_array_equal(y, frame["y"])
    with pytest.raises(DataError, match=r"needed, got 'bb'. It has 3, such as: b"):
        csv(path, columns=["bb"])


def test_csv_globs_and_headers(tmp_path):
    for number in (10, 2):
        (tmp_path / f"part.{number}.csv").write_text(f"a,y\n{number},1.5\n")
    x, y = everything(csv(tmp_path / "part.*.csv", label="y")).value()
    np.testing.assert_array_equal(x, [[2], [10]])
    assert y.dtype == np.float32
    (tmp_path / "part.11.csv").write_text("y,a\n1,2\n")
    with pytest.raises(DataError, match=r"part\.11\.csv:1: the header must be that of the first"):
        everything(csv(tmp_path / "part.*.csv", label="y"))


def test_csv_without_header_missing_values_quotes_and_bom(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes('\ufeff1;"2";NA\n3;4;\n'.encode())
    x = everything(csv(path, delimiter=";", has_header=False)).value()
    np.testing.assert_array_equal(x, [[1, 2, np.nan], [3, 4, np.nan]])
    named = tmp_path / "n.csv"
    named.write_bytes('\ufeffa,"b,c"\n1,"2"\n'.encode())
    np.testing.assert_array_equal(everything(csv(named, columns=["a", "b,c"])).value(), [[1, 2]])


def test_compressed_csv_is_dealt(table, tmp_path):
    frame, path = table
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    source = csv(packed, label="y")
    assert source.dealt
    np.testing.assert_array_equal(source.rows().columns[1], frame["y"])
    assert source.rows() is source.rows()
    assert "_held" not in pickle.loads(pickle.dumps(source)).__dict__


BAD_LINES = [
    ("3\n", "b.csv:61: 2 fields are needed, got 1"),
    ("3,4,5\n", "b.csv:61: 2 fields are needed, got 3"),
    ("3,abc\n", "b.csv:61: column 'b' must hold numbers, got 'abc'. Name the columns"),
    ('3,"4\n5"\n', "b.csv:61: each row must be one line .*Newlines inside quotes"),
    ('3,"4\n', "b.csv:61: each row must be one line"),
]


@pytest.mark.parametrize("block_bytes", [50, 2**26])
@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_csv_lines_are_named(tmp_path, line, message, block_bytes):
    path = tmp_path / "b.csv"
    path.write_text("a,b\n\n" + "1,2\n" * 58 + line + "1,2\n" * 20)
    with pytest.raises(DataError, match=message):
        everything(csv(path, block_bytes=block_bytes))


@pytest.mark.parametrize("block_bytes", [50, 2**26])
def test_latin_bytes_name_line_byte_and_fix(tmp_path, block_bytes):
    path = tmp_path / "l.csv"
    path.write_bytes(b"a,b\n" + b"1,2\n" * 20000 + b"1,N7\xe4\n")
    source = csv(path, columns=["a"], block_bytes=block_bytes * 1000)
    with pytest.raises(DataError) as caught:
        everything(source)
    assert "l.csv:20002 byte 5: text must be valid utf-8, got 0xE4" in str(caught.value)
    assert "encoding='latin-1'" in str(caught.value)
    assert len(everything(csv(path, columns=["a"], encoding="latin-1"))) == 20001


def test_labels_that_stop_being_integers_are_named(tmp_path):
    path = tmp_path / "y.csv"
    path.write_text("a,y\n" + "1,2\n" * 30000 + "1,2.5\n")
    with pytest.raises(DataError, match=r"y.csv:30002, column 'y': .* int64, got 2.5.*label_dtype"):
        everything(csv(path, label="y"))
    _, y = everything(csv(path, label="y", label_dtype="float64")).value()
    assert y[-1] == 2.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": "::"}, "one ASCII character"),
        ({"encoding": "utf-16"}, "newline as the byte 0x0A"),
        ({"encoding": "klingon"}, "one that Python knows"),
        ({"dtype": "U5"}, "dtype must be of real numbers"),
    ],
)
def test_csv_options_are_checked(table, options, message):
    with pytest.raises(DataError, match=message):
        csv(table[1], **options)


def test_missing_files_name_close_ones(tmp_path):
    for name in ("a9a.txt", "a9a.t", "zoo.csv"):
        (tmp_path / name).write_text("1 1:1\n")
    with pytest.raises(DataError, match=r"a9a: no such file.*Close names there: a9a\.t, a9a\.txt"):
        libsvm(tmp_path / "a9a")
    with pytest.raises(DataError, match="there is no folder"):
        csv(tmp_path / "nowhere" / "x.csv")
    with pytest.raises(DataError, match="a file is needed, got a folder"):
        csv(tmp_path)
    (tmp_path / "void.csv").touch()
    with pytest.raises(DataError, match="got an empty file"):
        csv(tmp_path / "void.csv")
    (tmp_path / "blank.csv").write_text("\n\n")
    with pytest.raises(DataError, match="only blank lines"):
        csv(tmp_path / "blank.csv")
    with pytest.raises(DataError, match="no such file"):
        csv(tmp_path / "*.nothing")


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "x.svm.gz"
    path.write_bytes(gzip.compress(b"1 1:1\n" * 1000)[:-12])
    with pytest.raises(DataError, match=r"x\.svm\.gz: the file must be readable"):
        libsvm(path).rows()


def test_pandas_missing_says_how_to_get_it(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError) as caught:
        csv(table[1])
    assert str(caught.value) == 'CSV files need pandas: pip install "flowml[dataframe]"'


def test_tokens_follow_files_and_options(table):
    _, path = table
    before = csv(path).token()
    assert csv(path).token() == before
    assert csv(path, label="y").token() != before
    path.write_text(path.read_text() + "1,2,0\n")
    assert csv(path).token() != before


@pytest.fixture
def svm(tmp_path):
    random = np.random.default_rng(1)
    x = random.random((50, 9)).round(2) * (random.random((50, 9)) < 0.3)
    x[7] = 0
    y = random.integers(0, 2, 50) * 2.0 - 1
    dump_svmlight_file(x, y, str(tmp_path / "t.svm"), zero_based=False, comment="made here")
    return x, y, tmp_path / "t.svm"


@pytest.mark.parametrize("block_bytes", [1, 33, 400, 2**26])
@pytest.mark.parametrize("n_features", [None, 9, 12])
def test_libsvm_cut_anywhere_is_the_same(svm, block_bytes, n_features):
    x, y, path = svm
    source = libsvm(path, n_features, block_bytes=block_bytes)
    got = everything(source)
    matrix, labels = got.value()
    width = n_features or np.flatnonzero(x.any(axis=0)).max() + 1
    assert matrix.shape == (50, width)
    np.testing.assert_array_equal(matrix.toarray()[:, :9], x[:, :width])
    np.testing.assert_array_equal(labels, y)
    assert matrix.indices.dtype == np.int32
    assert not source.dealt


def test_compressed_libsvm_is_dealt_like_sklearn_reads_it(svm, tmp_path):
    _, _, path = svm
    packed = tmp_path / "t.svm.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    source = libsvm(packed, dtype="float32")
    expected, labels = load_svmlight_file(str(path))
    assert source.dealt
    matrix, got = source.rows().value()
    np.testing.assert_array_equal(matrix.toarray(), expected.toarray().astype("f4"))
    np.testing.assert_array_equal(got, labels)
    assert matrix.dtype == got.dtype == np.float32


def test_zero_based_comments_and_qid(tmp_path):
    path = tmp_path / "z.svm"
    path.write_text("# head\n1 qid:3 0:2 4:1 # tail\n\n-1 qid:3\n")
    matrix, labels = everything(libsvm(path, zero_based=True)).value()
    np.testing.assert_array_equal(matrix.toarray(), [[2, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(labels, [1, -1])


BAD_ITEMS = [
    ("1 12:", "t:31: expected 'index:value', got '12:'"),
    ("1 12", "t:31: expected 'index:value', got '12'"),
    ("1 x:3", "t:31: expected 'index:value', got 'x:3'"),
    ("1 3:x", "t:31: expected 'index:value', got '3:x'"),
    ("yes 3:1", "t:31: a line must begin with a number, the label, got 'yes'"),
    ("1 0:1", "t:31: feature indices start at 1, got 0. Pass zero_based=True"),
    ("1 3:1 3:2", "t:31: feature indices must ascend, got 3 after 3"),
    ("1 123:1", "t:31: feature indices must fit n_features=122, got feature 123.*n_features=123"),
]


@pytest.mark.parametrize("block_bytes", [40, 2**26])
@pytest.mark.parametrize(("line", "message"), BAD_ITEMS)
def test_bad_libsvm_lines_are_named(tmp_path, line, message, block_bytes):
    path = tmp_path / "t"
    path.write_text("1 1:1 5:2\n" * 30 + line + "\n" + "1 2:1\n" * 9)
    with pytest.raises(DataError, match=message):
        everything(libsvm(path, 122, block_bytes=block_bytes))


def test_libsvm_options_are_checked(svm):
    with pytest.raises(DataError, match="n_features must be >= 1"):
        libsvm(svm[2], 0)
    with pytest.raises(DataError, match="floating-point"):
        libsvm(svm[2], dtype="int32")
