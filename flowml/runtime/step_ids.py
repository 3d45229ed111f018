"""Row ids of one step of one replica: what names the rows to read often names those to write."""

from __future__ import annotations

from typing import Any

from flowml.runtime.row_tables import RowSpec
from flowml.types import Array


class StepIds:
    """Looks at each array of ids once a step, for each table that is kept as rows.

    Notes
    -----
    Operators get their values read-only, so what was looked at stays as it was while the step
    lasts; in the next one the same array may hold other ids. Keeping the array keeps its identity
    from being that of another.
    """

    def __init__(self) -> None:
        self._looked_at: list[tuple[Any, RowSpec, Array]] = []

    def begin(self) -> None:
        """Forget the ids of the step before."""
        self._looked_at.clear()

    def keys(self, spec: RowSpec, ids: Any, where: str) -> Array:
        """Return ids as keys of a table; see RowSpec.check_ids."""
        for known, table, found in self._looked_at:
            if known is ids and table is spec:
                return found
        keys = spec.check_ids(ids, where)
        self._looked_at.append((ids, spec, keys))
        return keys
