"""The numbers of the rule of promises, as int64 words of one block: where each of them lies.

What one replica writes often has a cache line of its own. In a run the block lies in memory that
the processes of a host share; in the serial executor and in the simulator it is private.

::

    head         events, request to stop
    teams        for each: clock of the slowest live member, how many are at it;
                 for each member: clock, live
    gates        for each: firings, contributions queued, contributions dropped;
                 for each member of its team: the first stamp that is not taken, and one more than
                 the stamp that has missed its quorum and waits for the next, 0 if there is none
    tables       for each: versions, updates
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flowml.types import Array

LINE = 8
"""Words of a cache line."""
EVENTS, STOP = 0, 1
LEAST, AT_LEAST = 0, 1
CLOCK, LIVE = 0, 1
FIRED, QUEUED, DROPPED = 0, 1, 2
TAKEN, LATE = 0, 1
VERSION, UPDATES = 0, 1


class Words(NamedTuple):
    """A block of words and where its parts begin.

    Attributes
    ----------
    raw : memoryview of int64
        Items are Python numbers: faster than an array's for one at a time.
    lines : ndarray of int64, shape (n, LINE)
    teams, gates, tables : tuple of int
        Words before the line of each; the lines of the members follow that of their team or gate.
    """

    raw: memoryview
    lines: Array
    teams: tuple[int, ...]
    gates: tuple[int, ...]
    tables: tuple[int, ...]

    @classmethod
    def over(
        cls, block: Array, members: tuple[int, ...], gates: tuple[int, ...], tables: int
    ) -> Words:
        """Lay the parts out.

        Parameters
        ----------
        block : ndarray of int64, shape (count_words(...),)
        members : tuple of int
            Of each team.
        gates : tuple of int
            The team of each gate.
        tables : int
        """
        at = LINE
        starts: list[list[int]] = [[], [], []]
        for number, lines in _parts(members, gates, tables):
            starts[number].append(at)
            at += LINE * lines
        raw: memoryview = block.view(np.int64).data
        return cls(raw, block.reshape(-1, LINE), *map(tuple, starts))

    def column(self, start: int, members: int, word: int) -> Array:
        """Return one word of all members behind a team or a gate, as an array."""
        first = start // LINE + 1
        return self.lines[first : first + members, word]


def count_words(members: tuple[int, ...], gates: tuple[int, ...], tables: int) -> int:
    """Return how many words are needed; the parameters are those of ``Words.over``."""
    return LINE * (1 + sum(lines for _, lines in _parts(members, gates, tables)))


def _parts(members: tuple[int, ...], gates: tuple[int, ...], tables: int) -> list[tuple[int, int]]:
    """Return (kind of part, lines) of all parts in their order."""
    found = [(0, 1 + count) for count in members]
    found += [(1, 1 + members[team]) for team in gates]
    return found + [(2, 1)] * tables
