"""Nested arrays in one ``.npz`` file that is read without unpickling anything.

Arrays are stored under numbers; how they nest, and the numbers and words between them, is a line of
JSON beside them. Sparse rows are three arrays and a shape; the records that flowml itself gives to
operators are stored by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, csr_matrix, issparse

from flowml.errors import DataError, PlanError
from flowml.rules import At
from flowml.runtime.place import Place
from flowml.types import Array

SHAPE = "tree.json"
"""Name of the JSON among the arrays."""
FORM = 1
"""Number of this form of file."""
RECORDS: dict[str, Callable[..., Any]] = {"At": At, "Place": Place}
SPARSE: dict[str, Any] = {"csr_array": csr_array, "csr_matrix": csr_matrix}
PLAIN = (str, int, float, bool, type(None))


def write_tree(path: Path, tree: Any, facts: Mapping[str, Any]) -> Path:
    """Write a tree and some facts about it.

    Parameters
    ----------
    path : Path
        Given the ending ``.npz`` where it has none.
    tree : nested dicts, tuples and lists of arrays, sparse rows, numbers and words
    facts : mapping of str to plain values

    Raises
    ------
    PlanError
        If the tree holds anything else.
    """
    arrays: list[Array] = []
    shape = {"form": FORM, "facts": dict(facts), "tree": _encoded(tree, arrays, "")}
    text = np.frombuffer(json.dumps(shape).encode(), np.uint8)
    target = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    with target.open("wb") as file:
        named: dict[str, Any] = {SHAPE: text} | {str(n): a for n, a in enumerate(arrays)}
        np.savez_compressed(file, **named)
    return target


def read_tree(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the tree and the facts of a file.

    Raises
    ------
    DataError
        If it was not written by :func:`write_tree`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            shape = json.loads(file[SHAPE].tobytes())
            arrays = {name: file[name] for name in file.files if name != SHAPE}
        if shape["form"] != FORM:
            raise ValueError(f"form {shape['form']}")
        return _decoded(shape["tree"], arrays), shape["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            str(path),
            "must be a file that flowml wrote of a call",
            f"{type(error).__name__}: {error}",
        ) from error


def _encoded(value: Any, arrays: list[Array], at: str) -> Any:
    """Return a value as JSON, its arrays put aside; ``at`` is its place, for messages."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if issparse(value) and type(value).__name__ in SPARSE:
        parts = [_encoded(p, arrays, at) for p in (value.data, value.indices, value.indptr)]
        return {"sparse": [type(value).__name__, parts, list(value.shape)]}
    for name, kind in RECORDS.items():
        if type(value) is kind:
            fields = value._asdict() if isinstance(value, At) else vars(value)
            return {"record": [name, _encoded(dict(fields), arrays, at)]}
    if isinstance(value, dict):
        pairs = [
            [_encoded(k, arrays, at), _encoded(v, arrays, f"{at}/{k}")] for k, v in value.items()
        ]
        return {"dict": pairs}
    if type(value) in (tuple, list):
        items = [_encoded(v, arrays, f"{at}/{n}") for n, v in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) in PLAIN:
        return {"plain": value}
    raise PlanError(
        f"input {at.lstrip('/') or '0'} of the call",
        "a file holds arrays, sparse rows, numbers and words, and dicts, tuples and lists of them",
        f"a {type(value).__name__}",
        "error.call.inputs has it in memory.",
    )


def _decoded(shape: Any, arrays: Mapping[str, Array]) -> Any:
    ((kind, content),) = shape.items()
    if kind == "array":
        return arrays[str(content)]
    if kind == "sparse":
        name, parts, size = content
        return SPARSE[name](tuple(_decoded(p, arrays) for p in parts), shape=tuple(size))
    if kind == "record":
        name, fields = content
        return RECORDS[name](**_decoded(fields, arrays))
    if kind == "dict":
        return {_decoded(k, arrays): _decoded(v, arrays) for k, v in content}
    if kind in ("tuple", "list"):
        items = [_decoded(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content
