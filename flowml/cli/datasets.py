"""Data by name or path on the command line: train and test as sources.

Known forms: ``digits`` (scikit-learn's), IDX files (MNIST and its kin), LIBSVM, ``.npz``, ``.csv``
and ``.parquet``. A bare name is looked up under the folder FLOWML_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowml.data.binary_files import idx, npz
from flowml.data.csv_files import csv
from flowml.data.files import close_names
from flowml.data.libsvm_files import LibsvmSource, libsvm
from flowml.data.memory import arrays
from flowml.data.parquet_files import parquet
from flowml.data.rows import Rows
from flowml.data.source import Source, count_rows
from flowml.errors import DataError

FOLDER = "FLOWML_DATA"
DIGITS = "digits"
PACKED = (".gz", ".bz2", ".xz", ".zip")
TEST_PART = 0.2


@dataclass(frozen=True)
class Dataset:
    """Training examples, and test examples where there are any."""

    name: str
    train: Source
    test: Source | None


def find_dataset(
    given: str, test: str | None = None, label: str = "y", dtype: str = "float32"
) -> Dataset:
    """Return the data that a name or path means.

    Parameters
    ----------
    given : str
        ``digits``, a file, a folder, a glob, or a name under FLOWML_DATA.
    test : str, optional
        The same for the test examples; by default what stands beside the training files.
    label : str
        Column or array of the labels, where the form has names.
    dtype : str
        Of features that are read from text.

    Raises
    ------
    DataError
        If there is no such thing, or its form is not known.
    """
    if given == DIGITS and test is None and not Path(given).exists():
        return digits()
    place = _place(given)
    found = _beside(place, label, dtype)
    if test is not None:
        tested = _beside(_place(test), label, dtype).train
        found = Dataset(found.name, found.train, tested)
    return _same_width(found) if found.test is not None else found


def digits(seed: int = 0) -> Dataset:
    """Return scikit-learn's digits, cut 80/20 by a seeded permutation; 8 x 8 pixels in 0..1."""
    from sklearn.datasets import load_digits  # slow to import, and other data do not need it

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(X))
    X, y = (X[order] / 16).astype("float32"), y[order].astype("int64")
    cut = round(len(X) * (1 - TEST_PART))
    return Dataset(DIGITS, arrays(X[:cut], y[:cut]), arrays(X[cut:], y[cut:]))


def train_rows(source: Source) -> Iterator[Rows]:
    """Yield everything in a source, a partition at a time."""
    if source.dealt:
        yield source.rows()
        return
    for partition in source.partitions():
        yield partition.read()


def steps_of_epoch(source: Source, replicas: int, batch: int | None) -> int:
    """Return the steps of an epoch: those of the replica with the most rows."""
    if batch is None:
        return 1
    if source.dealt:
        shares = [-(-len(source.rows()) // replicas)]
    else:
        shares = [0] * replicas
        for number, partition in enumerate(source.partitions()):
            shares[number % replicas] += count_rows(partition)
    return max(1, *(-(-share // batch) for share in shares))


def _place(given: str) -> Path:
    path = Path(given).expanduser()
    if path.exists() or any(sign in given for sign in "*?[") or "://" in given:
        return path
    folder = os.environ.get(FOLDER)
    if folder is None:
        raise DataError(
            given,
            "no such file",
            "",
            f"A bare name is looked up in the folder that "
            f"the variable {FOLDER} names, and it is not set; {DIGITS!r} is always "
            "there.",
        )
    for candidate in (Path(folder) / given, *(Path(folder) / f"{given}{end}" for end in PACKED)):
        if candidate.exists():
            return candidate
    there = sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []
    near = close_names(Path(given).name, [*there, DIGITS]) or [*there, DIGITS]
    raise DataError(
        given,
        f"no such file, and nothing of that name in {FOLDER}={folder}",
        "",
        f"There is {', '.join(near)}.",
    )


def _beside(place: Path, label: str, dtype: str) -> Dataset:
    """Return what a path holds, and the test examples that stand beside it."""
    name = place.name
    if place.is_dir():
        return _folder(place, label, dtype)
    if "-images-idx3-ubyte" in name:
        tested = place.with_name(name.replace("train-", "t10k-", 1))
        test = _images(tested) if tested != place and tested.exists() else None
        return Dataset(place.parent.name or name, _images(place), test)
    kind = _suffix(place)
    if kind == ".npz":
        return Dataset(name, npz(place, label=label), None)
    if kind == ".csv":
        return Dataset(name, csv(place, label=label, dtype=dtype), None)
    if kind == ".parquet":
        return Dataset(name, parquet(place, label=label, dtype=dtype), None)
    tested = _libsvm_test(place)
    test = libsvm(tested, dtype=dtype) if tested.exists() else None
    return Dataset(_plain(name), libsvm(place, dtype=dtype), test)


def _folder(folder: Path, label: str, dtype: str) -> Dataset:
    """Return the data set in a folder, of whichever form its files are."""
    images = sorted(folder.glob("train-images-idx3-ubyte*"))
    if images:
        return _beside(images[0], label, dtype)
    if any(folder.glob("*.parquet")):
        return Dataset(folder.name, parquet(folder, label=label, dtype=dtype), None)
    for end in ("", *PACKED):  # a9a/a9a.gz
        if (folder / f"{folder.name}{end}").is_file():
            return _beside(folder / f"{folder.name}{end}", label, dtype)
    known = [
        p
        for p in sorted(folder.iterdir())
        if _suffix(p) in (".npz", ".csv", ".libsvm", ".svm") and ".t" not in p.suffixes
    ]
    if len(known) == 1:
        return _beside(known[0], label, dtype)
    got = ", ".join(p.name for p in known) or "none"
    raise DataError(
        str(folder),
        "a folder must hold IDX, Parquet or one file of a known form",
        got,
        "Name the file.",
    )


def _suffix(path: Path) -> str:
    suffixes = [s for s in path.suffixes if s not in PACKED]
    return suffixes[-1] if suffixes else ""


def _plain(name: str) -> str:
    for end in PACKED:
        name = name.removesuffix(end)
    return name


def _images(images: Path) -> Source:
    labels = images.with_name(images.name.replace("images-idx3", "labels-idx1"))
    return idx(images, labels, scale=1 / 255)


def _libsvm_test(train: Path) -> Path:
    """Return where the test file of a LIBSVM file stands: ``a9a.t.gz`` beside ``a9a.gz``."""
    plain = _plain(train.name)
    return train.with_name(f"{plain}.t{train.name.removeprefix(plain)}")


def _same_width(found: Dataset) -> Dataset:
    """Give train and test the same number of columns, where files say only what is not zero."""
    assert found.test is not None
    train, test = (width_of(source) for source in (found.train, found.test))
    if train == test:
        return found
    if not isinstance(found.train, LibsvmSource) or not isinstance(found.test, LibsvmSource):
        raise DataError(
            found.name, "train and test must have the same columns", f"{train} and {test}"
        )
    wide = max(train, test)
    return Dataset(found.name, _widened(found.train, wide), _widened(found.test, wide))


def _widened(source: LibsvmSource, n_features: int) -> LibsvmSource:
    return replace(source, format=replace(source.format, n_features=n_features))


def width_of(source: Source) -> int:
    """Return the number of features."""
    first = next(train_rows(source)).columns[0]
    return int(np.prod(first.shape[1:], dtype=np.int64))
