"""Graphs side by side: who comes to a loss first, and what it costs."""

from __future__ import annotations

from flowml.compare.comparing import compare
from flowml.compare.comparison import Comparison
from flowml.compare.rows import Row

__all__ = ["Comparison", "Row", "compare"]
