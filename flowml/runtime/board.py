"""What every rank of a host is at, readable by every process of the host.

A wait is extended while the one waited for reports, and its message names operator and age. The
reports lie in the shared segment, so that writing one costs no message and reading one works while
the writer computes, sleeps or is stopped.

::

    rank r:    word  step and operator in one number: (step << 16) | operator
               since nanoseconds on the monotonic clock when it entered
    member m:  beat  nanoseconds of the last sign of life of the process
               paused  percent of its memory limit at which it paused, 0 while it runs

Each has a cache line (64 bytes) of its own, so that ranks do not slow each other down. All are
written whole (8 bytes, aligned), by one writer; step and operator share a word, so no reader sees
the step of one and the operator of another. ``since`` is written first: a reader in between
may take a rank to be fresher than it is for a moment, never staler. CLOCK_MONOTONIC is the same in
all processes of a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from time import monotonic_ns
from typing import NamedTuple

import numpy as np

from flowml.errors import PlanError
from flowml.runtime.meter import Meter
from flowml.types import Array

_LINE = 8  # int64 in a cache line
_OPERATOR_BITS = 16
_OPERATOR_MASK = (1 << _OPERATOR_BITS) - 1


class Report(NamedTuple):
    """What one rank last said.

    Attributes
    ----------
    rank : int
    operator_index : int
        Index in the plan's list of operators.
    step : int
    since_seconds : float
        How long ago it entered that operator in that step.
    """

    rank: int
    operator_index: int
    step: int
    since_seconds: float


class Board:
    """Reports of ``ranks`` ranks and ``members`` processes on shared memory.

    Parameters
    ----------
    memory : ndarray of uint8, shape (Board.nbytes(ranks, members),)
        Zeroed when the first process opens it, 64-byte aligned.
    ranks, members : int

    Attributes
    ----------
    meters : tuple of Meter
        By rank: count what this process writes, each while it is let to.
    """

    def __init__(self, memory: Array, ranks: int, members: int) -> None:
        need = self.nbytes(ranks, members)
        if memory.nbytes != need:
            raise PlanError("board", f"needs {need} bytes", str(memory.nbytes))
        self._ranks = ranks
        self._words: memoryview = memory.view(np.int64).data
        self._opened = monotonic_ns()
        self.meters = tuple(Meter() for _ in range(ranks))

    @staticmethod
    def nbytes(ranks: int, members: int) -> int:
        """Return the bytes that a board needs."""
        return (ranks + members) * _LINE * 8

    def enter(self, rank: int, operator_index: int, step: int) -> None:
        """Say that a rank has entered an operator (index < 65536) in a step (< 2**47)."""
        words, meter = self._words, self.meters[rank]
        if meter.counting:
            meter.count(operator_index)
        at = rank * _LINE
        words[at + 1] = monotonic_ns()
        words[at] = step << _OPERATOR_BITS | operator_index

    def pen(
        self, rank: int, gone: Sequence[BaseException] = (), finishing: Container[int] = ()
    ) -> Callable[[int, int], None]:
        """Return ``enter`` for one rank as a function of (operator_index, step): half the cost.

        Parameters
        ----------
        gone : sequence of exceptions
            Once it holds any, the function raises the first: where no barrier is near, a rank
            learns here that its run is over.
        finishing : container of int
            Operators before which it does not: a rank that has all it needs for a step ends it.
        """
        words, at, now = self._words, rank * _LINE, monotonic_ns
        after = at + 1
        counting, count = self.meters[rank].counting, self.meters[rank].count

        def enter(operator_index: int, step: int) -> None:
            if gone and operator_index not in finishing:
                raise gone[0]
            if counting:
                count(operator_index)
            words[after] = now()
            words[at] = step << 16 | operator_index

        return enter

    def read(self, rank: int) -> Report:
        """Return what a rank last said; before its first word, operator 0 of step 0 since now."""
        words, at = self._words, rank * _LINE
        word, since = words[at], words[at + 1]
        age = (monotonic_ns() - since) / 1e9 if since else 0.0
        return Report(rank, word & _OPERATOR_MASK, word >> _OPERATOR_BITS, max(age, 0.0))

    def beat(self, member: int) -> None:
        """Say that a process is alive and gets to run."""
        self._words[self._at(member)] = monotonic_ns()

    def silence(self, member: int) -> float:
        """Return the seconds since a process last said so; since opening if it never has."""
        beat = self._words[self._at(member)] or self._opened
        return max((monotonic_ns() - beat) / 1e9, 0.0)

    def pause(self, member: int, percent: int) -> None:
        """Say that Dask has paused a process at so many percent of its memory; 0 ends it."""
        self._words[self._at(member) + 1] = percent

    def paused(self, member: int) -> int:
        """Return at how many percent of its memory a process paused; 0 while it runs."""
        return self._words[self._at(member) + 1]

    def _at(self, member: int) -> int:
        return (self._ranks + member) * _LINE
