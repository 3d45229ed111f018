"""What a comparison found: a table for the terminal, a data frame, a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from flowml.compare.page import comparison_page
from flowml.compare.rows import (
    Row,
    cells_of,
    chosen_target,
    header_of,
    rows_of,
    target_words,
    verdict_of,
)
from flowml.compare.trial import Trial
from flowml.history import History
from flowml.report.page import write

WIDTH = 140
"""Characters that the table needs; a narrower terminal wraps its lines."""


class Comparison:
    """Graphs side by side; ``print`` it.

    Attributes
    ----------
    rows : tuple of Row
    target_loss : float
        The training loss that times and examples are to.
    chosen : bool
        Nobody named it.
    trials : tuple of Trial
        With the curves; several of a row where it was repeated.
    score : str
        What the scores are, such as "accuracy"; "" where the model has none.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        target_loss: float | None = None,
        *,
        score: str = "",
        drawings: Mapping[str, str] | None = None,
        virtual: bool = False,
    ) -> None:
        self.trials = tuple(trials)
        self.chosen = target_loss is None
        self.target_loss = chosen_target(trials) if target_loss is None else float(target_loss)
        self.score = score
        self.rows = rows_of(self.trials, self.target_loss)
        self._drawings = dict(drawings or {})
        self._virtual = virtual

    def __str__(self) -> str:
        with StringIO() as written:
            console = Console(file=written, width=WIDTH, color_system=None)
            console.print(self)
            return "\n".join(line.rstrip() for line in written.getvalue().rstrip().splitlines())

    def __repr__(self) -> str:
        """Show how much there is."""
        return f"<Comparison of {len(self.rows)} rows to loss {self.target_loss:.4g}>"

    def __rich__(self) -> Group:
        """Return what a terminal shows: the target, the table, and who came there first."""
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, name in enumerate(header_of(self.score, virtual=self._virtual)):
            lines = name.replace(" ", "\n")
            made.add_column(lines, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            made.add_row(*cells_of(row, self.score))
        return Group(Text(self._words), made, Text(verdict_of(self.rows)))

    @property
    def _words(self) -> str:
        return target_words(self.target_loss, chosen=self.chosen)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with the fields of :class:`Row` as columns.

        Raises
        ------
        ImportError
            Without pandas.
        """
        names = [f.name for f in fields(Row)]
        return History(
            {n: np.array([getattr(row, n) for row in self.rows]) for n in names}
        ).to_pandas()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as for JSON: None where something is not known."""
        rows = [{name: _plain(value) for name, value in asdict(row).items()} for row in self.rows]
        return {"target_loss": _plain(self.target_loss), "score": self.score, "rows": rows}

    def report(self, path: str | Path) -> Path:
        """Write table, curves and plots as one HTML file that opens without a network."""
        return write(
            path,
            comparison_page(
                self.rows,
                self.trials,
                self.target_loss,
                self._words,
                score=self.score,
                drawings=self._drawings,
                virtual=self._virtual,
            ),
        )


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
