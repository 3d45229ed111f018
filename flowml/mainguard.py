"""One line instead of 451 when ``if __name__ == "__main__"`` is missing."""

from __future__ import annotations


def refuse_inherited_start() -> None:
    """placeholder"""
