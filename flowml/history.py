"""The columns of a run: what each replica did in each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flowml.types import Array


class History(Mapping[str, Array]):
    """Columns of equal length, one row a step and replica, ordered by step.

    All steps of the first thousand are kept, then every tenth, and so on: a mean over a long run
    weighs its rows with `flowml.thinning.strides`.

    Attributes
    ----------
    step, replica : ndarray of int
    loss : ndarray of float64
        Of the replica's batch; NaN where it had none.
    seconds, wait_seconds : ndarray of float64
        Wall time of the step, and the part of it spent waiting for other replicas.
    staleness : ndarray of int
        Steps by which the parameters read were old; 0 under sync.
    began : ndarray of float64
        When the step began, in seconds since the first step of the run.
    """

    def __init__(self, columns: Mapping[str, Array]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> Array:
        """Return a column."""
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the columns."""
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._columns)

    def __repr__(self) -> str:
        """Show how much there is."""
        rows = len(next(iter(self._columns.values()), ()))
        return f"<History of {rows} rows: {', '.join(self._columns)}>"

    def by_replica(self) -> dict[int, Array]:
        """Return the numbers of the rows of each replica, in the order of its steps."""
        replicas = self._columns["replica"]
        order = np.argsort(replicas, kind="stable")
        found, starts = np.unique(replicas[order], return_index=True)
        return (
            dict(zip(found.tolist(), np.split(order, starts[1:]), strict=True))
            if len(found)
            else {}
        )

    def mean_loss(self) -> tuple[Array, Array]:
        """Return steps, and the mean of the replicas' losses in each (NaN left out)."""
        loss, step = self._columns["loss"], self._columns["step"]
        known = np.isfinite(loss)
        steps, at = np.unique(step[known], return_inverse=True)
        counts = np.bincount(at, minlength=len(steps))
        return steps, np.bincount(at, loss[known], minlength=len(steps)) / np.maximum(counts, 1)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame.

        Raises
        ------
        ImportError
            Without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError('to_pandas needs pandas: pip install "flowml[dataframe]"') from error
        return pd.DataFrame(self._columns)
