"""How the shared memory of a host is cut for a loose run.

::

    board      where each replica says what it does (board.py)
    counts     how often replicas have met in their groups (group_meeting.py)
    regions    what replicas of a group read of each other (domain.py)
    center     what all share (center_memory.py): the part that is there from the start
    growing    and the part that grows: the last one, so that only addresses are taken for it
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from flowml.runtime.arena import Arena, Reserve
from flowml.runtime.board import Board
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.domain import Domain, DomainMemory, Layouts, MemoryMap, map_memory
from flowml.runtime.group_meeting import GroupMeeting, counts_over
from flowml.runtime.loose_plan import LoosePlan
from flowml.types import Array

ALIGN = 64


@dataclass(frozen=True)
class LooseMemory:
    """Where each part begins. Bytes.

    Attributes
    ----------
    counts, regions, center, growing : int
    nbytes : int
        All of it, addresses included.
    """

    counts: int
    regions: MemoryMap
    center: int
    growing: int
    nbytes: int

    @property
    def reserved(self) -> int:
        """Bytes that are there from the start."""
        return self.growing

    @classmethod
    def of(
        cls, loose: LoosePlan, layouts: Layouts, seed: int, domain: Domain, workers: int
    ) -> LooseMemory:
        """Return the cut for one host.

        Parameters
        ----------
        workers : int
            Of the whole run, for the board.
        """
        replicas = loose.plan.replicas
        counts = Board.nbytes(replicas, workers)
        regions = map_memory(loose.local, layouts, domain, counts + 8 * GroupMeeting.size(replicas))
        counted = CenterMemory.over(loose, layouts, seed)
        growing = regions.nbytes + counted.nbytes
        return cls(counts, regions, regions.nbytes, growing, growing + counted.growing_bytes)

    def center_memory(
        self, loose: LoosePlan, layouts: Layouts, seed: int, block: Array, reserve: Reserve
    ) -> CenterMemory:
        """Return the center over a block; ``reserve`` gets bytes of the whole block."""
        fixed = Arena(block[self.center : self.growing])
        grows = Arena(block[self.growing :], partial(_shifted, reserve, self.growing))
        return CenterMemory.over(loose, layouts, seed, fixed, grows)

    def meetings(self, block: Array, replicas: int) -> Array:
        """Return the counts of the groups' meetings."""
        return counts_over(block[self.counts :], replicas)

    def domain_memory(self, block: Array) -> DomainMemory:
        """Return what replicas of a group read of each other."""
        return DomainMemory(self.regions, block)


def _shifted(reserve: Reserve, first: int, start: int, nbytes: int) -> None:
    reserve(first + start, nbytes)
