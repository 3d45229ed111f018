"""All-or-nothing, first come first served admission of runs to the slots of workers.

A run asks once for all the slots that it needs and gets all of them or waits; it never holds some
and waits for others, so two runs cannot block each other. Order is strict: a request never
overtakes an earlier waiting one that wants a worker it wants too, not even when there would be
room for it. That leaves slots idle at times and starves nobody, however large its request.
Requests that share no worker do not wait for each other.

Nothing here waits, sends or reads a clock: the caller carries verdicts to the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowml.errors import PlanError


@dataclass(frozen=True, slots=True)
class Holder:
    """A run that holds slots of workers that another one wants.

    Attributes
    ----------
    run, client, name : str
    workers : tuple of str
        Those of the wanted workers that it holds slots of.
    """

    run: str
    client: str
    name: str
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """The run holds all its slots until it is released."""

    run: str


@dataclass(frozen=True, slots=True)
class Queued:
    """The run waits.

    Attributes
    ----------
    run : str
    position : int
        Number of earlier waiting requests that share a worker with it, directly or through
        others; 0 when it is next.
    holders : tuple of Holder
        Who holds slots of the workers it wants, in the order they were granted.
    """

    run: str
    position: int
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        held = ", ".join(
            f"{holder.name!r} (client {holder.client}) on {', '.join(holder.workers)}"
            for holder in self.holders
        )
        ahead = f"{self.position} ahead of it in the queue"
        return f"waits for {held or 'earlier requests'}; {ahead}"


@dataclass(frozen=True, slots=True)
class Departed:
    """What the departure of a client changed: runs released, and runs granted by that."""

    released: tuple[str, ...]
    granted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Request:
    run: str
    client: str
    name: str
    wanted: Mapping[str, int]


class Admission:
    """The slots of all workers, who holds them and who waits.

    Parameters
    ----------
    slots : mapping of str to int
        Slots of each worker known at the start.

    Notes
    -----
    A worker that is removed takes its slots with it. The runs that it hit keep their other slots
    and their place in the queue until they are released, so that the caller decides what becomes
    of them.
    """

    def __init__(self, slots: Mapping[str, int] | None = None) -> None:
        self._slots: dict[str, int] = dict(slots or {})
        self._held: dict[str, _Request] = {}
        self._waiting: dict[str, _Request] = {}

    def free(self, worker: str) -> int:
        """Return the slots of a worker that no run holds; 0 for an unknown one."""
        return self._slots.get(worker, 0) - sum(
            request.wanted.get(worker, 0) for request in self._held.values()
        )

    def add_worker(self, worker: str, slots: int) -> tuple[str, ...]:
        """Add a worker, or change how many slots it has; return the runs now granted."""
        if slots < 1:
            raise PlanError(f"worker {worker}", "slots must be an int >= 1", str(slots))
        self._slots[worker] = slots
        return self._grant()

    def remove_worker(self, worker: str) -> tuple[str, ...]:
        """Remove a worker; return the runs that hold or wait for slots of it, oldest first."""
        self._slots.pop(worker, None)
        requests = [*self._held.values(), *self._waiting.values()]
        return tuple(request.run for request in requests if worker in request.wanted)

    def request(
        self, run: str, client: str, wanted: Mapping[str, int], name: str
    ) -> Granted | Queued:
        """Ask for slots of workers, all or none.

        Asking again for a run changes nothing and returns how it stands.

        Parameters
        ----------
        run, client, name : str
            ``name`` is what other users are shown.
        wanted : mapping of str to int
            Slots wanted of each worker, >= 1.

        Raises
        ------
        PlanError
            It can never be granted: a worker is unknown or has fewer slots in all; or the run
            has asked before for something else.
        """
        known = self._held.get(run) or self._waiting.get(run)
        if known is None:
            self._check(name, wanted)
            self._waiting[run] = _Request(run, client, name, dict(wanted))
            self._grant()
        elif known.wanted != wanted:
            asked = f"{dict(wanted)} after {dict(known.wanted)}"
            raise PlanError(f"run {name!r}", "must ask for the same slots again", asked)
        return self.standing(run)

    def standing(self, run: str) -> Granted | Queued:
        """Return how a run stands.

        Raises
        ------
        PlanError
            The run has asked for nothing, or has been released.
        """
        if run in self._held:
            return Granted(run)
        if run not in self._waiting:
            raise PlanError(f"run {run}", "must have asked for slots", "none")
        mine = self._waiting[run]
        return Queued(run, self._ahead(mine), self._holders(mine))

    def release(self, run: str) -> tuple[str, ...]:
        """Give back what a run holds, or its place in the queue; return the runs now granted."""
        self._held.pop(run, None)
        self._waiting.pop(run, None)
        return self._grant()

    def remove_client(self, client: str) -> Departed:
        """Release all runs of a client."""
        requests = [*self._held.values(), *self._waiting.values()]
        released = tuple(request.run for request in requests if request.client == client)
        for run in released:
            self._held.pop(run, None)
            self._waiting.pop(run, None)
        return Departed(released, self._grant())

    def _grant(self) -> tuple[str, ...]:
        granted = []
        spoken_for: set[str] = set()  # workers that an earlier request still waits for
        for request in tuple(self._waiting.values()):
            fits = all(self.free(worker) >= n for worker, n in request.wanted.items())
            if fits and spoken_for.isdisjoint(request.wanted):
                self._held[request.run] = self._waiting.pop(request.run)
                granted.append(request.run)
            else:
                spoken_for.update(request.wanted)
        return tuple(granted)

    def _ahead(self, mine: _Request) -> int:
        runs = list(self._waiting)
        workers, ahead = set(mine.wanted), 0
        for run in reversed(runs[: runs.index(mine.run)]):
            other = self._waiting[run]
            if not workers.isdisjoint(other.wanted):
                workers.update(other.wanted)
                ahead += 1
        return ahead

    def _holders(self, mine: _Request) -> tuple[Holder, ...]:
        found = []
        for held in self._held.values():
            workers = tuple(worker for worker in held.wanted if worker in mine.wanted)
            if workers:
                found.append(Holder(held.run, held.client, held.name, workers))
        return tuple(found)

    def _check(self, name: str, wanted: Mapping[str, int]) -> None:
        where = f"run {name!r}"
        if not wanted or min(wanted.values()) < 1:
            raise PlanError(where, "must want at least one slot of each worker", str(dict(wanted)))
        for worker, slots in wanted.items():
            if worker not in self._slots:
                required = f"worker {worker} must be in the cluster"
                raise PlanError(where, required, fix="Plan the run again.")
            if slots > self._slots[worker]:
                required = f"worker {worker} has {self._slots[worker]} slots"
                fix = "Use fewer replicas a worker, or workers with more threads."
                raise PlanError(where, required, f"a request for {slots}", fix)
