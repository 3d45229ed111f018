"""The report of a run: one HTML file that opens without a network."""

from __future__ import annotations

from flowml.report.writing import write_report

__all__ = ["write_report"]
