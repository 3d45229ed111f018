"""What a worker knows of the ranks of its host: where each is, and which has been silent too long.

Deadlines are silence: who waits goes on waiting while the awaited process gives signs of life,
however long its operator takes; ``step_seconds`` bounds an operator where the user wants that.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowml.errors import StalledError, WorkerLostError
from flowml.plan import Plan
from flowml.runtime import meter
from flowml.runtime.board import Board, Report
from flowml.runtime.runspec import RunSpec

WAITING = meter.WAITING
"""Index on the board of a rank that stands at a barrier, or between windows."""
BEAT_SECONDS = 0.5
"""How often a process says on the board that it is alive."""
KEPT = "The tables of the last committed step are in error.run.tables."


@dataclass(frozen=True)
class Whereabouts:
    """Where a worker was last known to be.

    Attributes
    ----------
    operator : str
        Its name; several where another host cannot know which.
    words : str
        The same for a message.
    step : int
    exact : bool
        Whether this is what its own host saw.
    edge : str
        The edge on which others wait for it; "" where they meet it at a barrier.
    replica : int
        The one that is in the operator; -1 where another host cannot know which.
    """

    operator: str
    words: str
    step: int
    exact: bool
    edge: str = ""
    replica: int = -1


class Watch:
    """One process's view of the board of its host.

    Parameters
    ----------
    spec : RunSpec
    worker : str
        Address of this process.
    board : Board
    """

    def __init__(self, spec: RunSpec, worker: str, board: Board) -> None:
        self._spec = spec
        self._worker = worker
        self._board = board

    def beat(self, paused_percent: int) -> None:
        """Tell the other processes of this host that this one is alive."""
        member = self._spec.member(self._worker)
        self._board.beat(member)
        self._board.pause(member, paused_percent)

    def _reports(self, worker: str) -> list[Report]:
        """Return what the ranks of a worker said last, those that are in an operator if any is."""
        reports = [self._board.read(r) for r in self._spec.roster.ranks(worker)]
        return [r for r in reports if r.operator_index != WAITING] or reports

    def whereabouts(self, worker: str) -> Whereabouts:
        """Return the operator and step that a worker was last seen in."""
        if worker not in self._spec.roster.domain(self._worker):
            return self._somewhere()
        first = self._reports(worker)[0]
        if first.operator_index == WAITING:
            words = f"a wait in step {first.step}"
            return Whereabouts("barrier", words, first.step, True, replica=first.rank)
        operator = self._spec.plan.steps[first.operator_index]
        words = f"{operator.label}, step {first.step}"
        edge = awaited_edge(self._spec.plan, operator.name)
        return Whereabouts(operator.name, words, first.step, True, edge, first.rank)

    def _somewhere(self) -> Whereabouts:
        """Return all that is known of a worker of another host: it is in the step of this one."""
        step = max(r.step for r in self._reports(self._worker))
        names = [o.name for o in self._spec.plan.steps if o.kind != "here"]
        listed = ", ".join(repr(n) for n in names)
        words = f"one of the operators {listed}, step {step}"
        return Whereabouts(", ".join(names), words, step, False)

    def lost(self, worker: str) -> WorkerLostError:
        """Return the error for a worker that is gone."""
        return lost_error(worker, self.whereabouts(worker), self._spec.roster.ranks(worker))

    def check(self, worker: str, waited: float) -> None:
        """Raise if an awaited worker of this host is silent, or one of its operators too slow.

        Raises
        ------
        StalledError
            Naming operator, replica and worker.
        """
        found = self.overdue(worker)
        if found is not None:
            raise found
        deadline = max(self._spec.order.deadline_seconds, 4 * BEAT_SECONDS)
        member = self._spec.member(worker)
        silence = self._board.silence(member)
        if worker == self._worker or silence <= deadline or waited < deadline:
            return
        raise silent_error(
            worker,
            self.whereabouts(worker),
            self._spec.roster.ranks(worker),
            silence,
            self._spec.order.deadline_seconds,
            self._board.paused(member),
        )

    def silent(self, worker: str, waited: float) -> None:
        """Raise because a worker of another host does not answer."""
        raise silent_error(
            worker,
            self.whereabouts(worker),
            self._spec.roster.ranks(worker),
            waited,
            self._spec.order.deadline_seconds,
        )

    def overdue(self, worker: str = "") -> StalledError | None:
        """Return the error for an operator that takes longer than ``step_seconds``, if any does.

        Parameters
        ----------
        worker : str
            Whose operators; this process's own when left out.
        """
        limit, worker = self._spec.order.step_seconds, worker or self._worker
        if limit is None:
            return None
        slowest = max(self._reports(worker), key=lambda r: r.since_seconds)
        if slowest.operator_index == WAITING or slowest.since_seconds <= limit:
            return None
        operator = self._spec.plan.steps[slowest.operator_index]
        edge = awaited_edge(self._spec.plan, operator.name) or f"{operator.name} -> barrier"
        return StalledError(
            f"{operator.label} in replica {slowest.rank}, step {slowest.step}, on worker {worker}",
            f"must end within {limit:g} s (step_seconds)",
            f"{slowest.since_seconds:.1f} s so far; edge {edge} waits for replica {slowest.rank} "
            f"at clock {slowest.step}, whose last message is that it entered the operator",
            "See what it computes, or raise the limit.",
            edge=edge,
            waiting_for=f"replica {slowest.rank}",
            since_seconds=slowest.since_seconds,
            clock=slowest.step,
            last_message=f"entered {operator.label} in step {slowest.step}",
            operator=operator.name,
            replica=slowest.rank,
            step=slowest.step,
            worker=worker,
        )


def awaited_edge(plan: Plan, name: str) -> str:
    """Return the edge on which others wait for an operator: the next one that leaves its replica.

    Returns
    -------
    str
        ``source -> reader``; "" where nothing that it makes does.
    """
    pending = [name]
    for source in pending:
        for reader in plan.steps:
            for number, port in enumerate(reader.inputs):
                if port.source != source or port.table:
                    continue
                if port.crosses:
                    return plan.edge_name(reader, number)
                if reader.name not in pending:
                    pending.append(reader.name)
    return ""


def lost_error(worker: str, where: Whereabouts, ranks: tuple[int, ...]) -> WorkerLostError:
    """Return the error for a worker that is gone."""
    return WorkerLostError(
        f"worker {worker}",
        f"was lost in {where.words}",
        fix=KEPT,
        kind="worker",
        worker=worker,
        operator=where.operator,
        step=where.step,
        replica=ranks[0] if ranks else -1,
    )


def silent_error(
    worker: str,
    where: Whereabouts,
    ranks: tuple[int, ...],
    silence: float,
    deadline: float,
    paused_percent: int = 0,
) -> StalledError:
    """Return the error for a worker that gives no sign of life."""
    paused = f"; it paused at {paused_percent} % memory" if paused_percent else ""
    first = where.replica if where.replica >= 0 else ranks[0] if ranks else -1
    edge = where.edge or f"{where.operator} -> barrier"
    on = f"edge {where.edge}" if where.edge else "the barrier"
    return StalledError(
        f"worker {worker}",
        f"must give a sign of life within {deadline:g} s (deadline)",
        f"silence for {silence:.1f} s; {on} waits for replica {first} at clock {where.step}, whose "
        f"last message is from {where.words}{paused}",
        "See whether it is stopped or cut off.",
        edge=edge,
        waiting_for=worker,
        since_seconds=silence,
        clock=where.step,
        last_message=where.words,
        operator=where.operator,
        replica=first,
        step=where.step,
        worker=worker,
    )
