"""Who takes part in one incarnation of a run, and which of them share memory.

A *seat* gives a rank to a worker; a worker may hold several. Workers with the same host key (the
same machine, user and network namespace, as far as they can tell) form a *domain*: they exchange
through one shared segment. A domain whose probe fails is split into single workers, which then
exchange as workers of different hosts do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flowml.errors import PlanError
from flowml.protocol.fence import RUN_BYTES, fence


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank on one worker.

    Attributes
    ----------
    rank : int
        0 <= rank < number of seats.
    worker : str
        Address of the worker.
    host_key : str
        Equal for workers that may share memory.
    """

    rank: int
    worker: str
    host_key: str


@dataclass(frozen=True, slots=True)
class Roster:
    """The seats of one incarnation, in order of rank, and the domains of their workers.

    Attributes
    ----------
    run : bytes, length 16
    incarnation : int
    seats : tuple of Seat
        Seat i has rank i.
    domains : tuple of tuples of str
        A partition of the workers. Workers in a domain and the domains themselves are in order
        of their lowest rank; the first worker of a domain is its leader. ``Roster.seat`` makes
        them from the host keys.
    """

    run: bytes
    incarnation: int
    seats: tuple[Seat, ...]
    domains: tuple[tuple[str, ...], ...]

    @classmethod
    def seat(cls, run: bytes, incarnation: int, seats: Iterable[Seat]) -> Roster:
        """Return the roster in which equal host keys share memory.

        Raises
        ------
        PlanError
            There is no seat, ranks are not 0, 1, 2, ..., a worker has two host keys, or the run
            is not 16 bytes.

        Examples
        --------
        >>> seats = [Seat(0, "a", "x"), Seat(1, "b", "y"), Seat(2, "c", "x"), Seat(3, "a", "x")]
        >>> Roster.seat(bytes(16), 0, seats).domains
        (('a', 'c'), ('b',))
        """
        ordered = tuple(sorted(seats, key=lambda seat: seat.rank))
        _check(run, ordered)
        domains: dict[str, list[str]] = {}
        for seat in ordered:
            domain = domains.setdefault(seat.host_key, [])
            if seat.worker not in domain:
                domain.append(seat.worker)
        return cls(run, incarnation, ordered, tuple(tuple(d) for d in domains.values()))

    @property
    def workers(self) -> tuple[str, ...]:
        """All workers, in order of their lowest rank."""
        return tuple(dict.fromkeys(seat.worker for seat in self.seats))

    def ranks(self, worker: str) -> tuple[int, ...]:
        """Return the ranks of a worker, ascending; empty when it has no seat."""
        return tuple(seat.rank for seat in self.seats if seat.worker == worker)

    def domain(self, worker: str) -> tuple[str, ...]:
        """Return the domain that a worker is in.

        Raises
        ------
        PlanError
            The worker has no seat.
        """
        for domain in self.domains:
            if worker in domain:
                return domain
        raise PlanError("roster", "the worker must have a seat", worker)

    def leader(self, worker: str) -> str:
        """Return the first worker of the domain that ``worker`` is in."""
        return self.domain(worker)[0]

    def split(self, domain: tuple[str, ...]) -> Roster:
        """Return the same roster with one domain cut into single workers.

        Parameters
        ----------
        domain : tuple of str
            One of ``domains``.

        Raises
        ------
        PlanError
            It is no domain of this roster.
        """
        if domain not in self.domains:
            raise PlanError("roster", f"must be one of the domains {self.domains}", str(domain))
        kept = [d for d in self.domains if d != domain] + [(worker,) for worker in domain]
        order = self.workers
        return replace(self, domains=tuple(sorted(kept, key=lambda d: order.index(d[0]))))

    def fence(self, run: bytes, incarnation: int, where: str = "message") -> None:
        """Refuse what belongs to another run or incarnation.

        Raises
        ------
        StaleRunError
            With both numbers; ``newer`` is True when this roster is the one out of date.
        """
        fence(where, self.run, self.incarnation, run, incarnation)


def _check(run: bytes, ordered: tuple[Seat, ...]) -> None:
    if len(run) != RUN_BYTES:
        raise PlanError("roster", f"run must be {RUN_BYTES} bytes", str(len(run)))
    ranks = [seat.rank for seat in ordered]
    if not ranks or ranks != list(range(len(ranks))):
        raise PlanError("roster", "ranks must be 0, 1, 2, ... without gaps", str(ranks))
    keys: dict[str, str] = {}
    for seat in ordered:
        known = keys.setdefault(seat.worker, seat.host_key)
        if known != seat.host_key:
            found = f"{known!r} and {seat.host_key!r}"
            raise PlanError(f"worker {seat.worker}", "must have one host key", found)
