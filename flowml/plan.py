"""The physical plan: what will run, where, in which phase, and in which order sums are taken.

Plain data: it knows neither the graph that it came from nor the executor that will run it.

A step is cut in *phases* by barriers. Inside a phase every rank works alone; what one rank makes
and another reads crosses to a later phase. Phase 0 holds what each replica does from its batch
and from the tables as they stood at the start of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from flowml.actions import GLOBAL, REPLICA, Action, Aggregate, Assign, Evaluate, Here, Kind, Update
from flowml.codecs.contract import Codec
from flowml.edges import Quorum
from flowml.freshness import SYNC, Promises
from flowml.reductions import Tree, sum_tree
from flowml.types import Site

Placement: TypeAlias = Literal["replica", "group", "reduce", "table", "driver"]
"""How an operator is spread: one a replica, one a group (or one for all), combining finer values,
changing a table, or outside the step."""


@dataclass(frozen=True)
class PlanPort:
    """One input: its source, its period, and whether it moves between ranks."""

    source: str
    output: int
    table: bool
    """The source is a table as it stood at the start of the step."""
    every: int = 1
    keep: Literal["last", "sum", "mean"] = "last"
    crosses: bool = False
    promises: Promises = SYNC
    codec: Codec | None = None
    ids: tuple[str, int] | None = None
    """The (operator, output) that names the rows which are read, or which the values are for."""
    threshold: float | None = None
    """What the kept update must exceed, relative to the parameter, to travel."""
    members: Quorum | None = None
    """How many contributions a firing takes, and what becomes of later ones."""


@dataclass(frozen=True)
class PlanOperator:
    """One operator with its placement."""

    name: str
    kind: Kind
    action: Action
    scope: str
    inputs: tuple[PlanPort, ...]
    outputs: int
    site: Site
    placement: Placement
    phase: int
    sliced: bool
    """Every rank of the instance does its slice of the flat buffers; else the lowest does all."""

    @cached_property
    def writes(self) -> str | None:
        """Name of the table that it writes, or None."""
        return self.action.table if isinstance(self.action, Update | Assign) else None

    @property
    def label(self) -> str:
        """Name and place, for messages."""
        return f"operator {self.name!r} ({self.site})"


@dataclass(frozen=True)
class PlanTable:
    """A table and the operators that write it, in the order of the step."""

    name: str
    scope: str
    init: Any
    site: Site
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What every executor runs."""

    graph: str
    form: str
    """Structural name of the graph it was made from, its data left out."""
    replicas: int
    groups: tuple[tuple[int, ...], ...]
    """Ranks of each group; one group of all ranks where the graph names none."""
    operators: tuple[PlanOperator, ...]
    tables: tuple[PlanTable, ...]
    blas_threads: int = 1
    own_copies: bool = False
    """Every rank has all tables to itself and does all that is global (runtime/own_copies.py)."""
    _by_name: dict[str, PlanOperator] = field(init=False, repr=False, compare=False)
    _tables: dict[str, PlanTable] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index operators and tables by name."""
        object.__setattr__(self, "_by_name", {o.name: o for o in self.operators})
        object.__setattr__(self, "_tables", {t.name: t for t in self.tables})

    def operator(self, name: str) -> PlanOperator:
        """Return the operator of that name."""
        return self._by_name[name]

    def table(self, name: str) -> PlanTable:
        """Return the table of that name."""
        return self._tables[name]

    @property
    def steps(self) -> tuple[PlanOperator, ...]:
        """The operators of a step; evaluations stand beside the steps."""
        return tuple(o for o in self.operators if not isinstance(o.action, Evaluate))

    @property
    def evaluations(self) -> tuple[PlanOperator, ...]:
        """The evaluations."""
        return tuple(o for o in self.operators if isinstance(o.action, Evaluate))

    @property
    def phases(self) -> int:
        """Number of phases of a full step."""
        return 1 + max((o.phase for o in self.steps), default=0)

    @cached_property
    def group_of(self) -> tuple[int, ...]:
        """The group of each rank."""
        of = {rank: g for g, ranks in enumerate(self.groups) for rank in ranks}
        return tuple(of[rank] for rank in range(self.replicas))

    def instances(self, scope: str) -> int:
        """Return how many instances an operator or table of that scope has."""
        if scope == REPLICA:
            return self.replicas
        return 1 if scope == GLOBAL else len(self.groups)

    def instance_of(self, scope: str, rank: int) -> int:
        """Return the instance of a scope that a rank belongs to."""
        if scope == REPLICA:
            return rank
        return 0 if scope == GLOBAL else self.group_of[rank]

    def ranks_of(self, scope: str, instance: int) -> tuple[int, ...]:
        """Return the ranks of an instance."""
        if scope == REPLICA:
            return (instance,)
        return tuple(range(self.replicas)) if scope == GLOBAL else self.groups[instance]

    def scope_of(self, port: PlanPort) -> str:
        """Return the scope of what a port reads."""
        return self.table(port.source).scope if port.table else self.operator(port.source).scope

    def members(self, operator: PlanOperator, instance: int) -> tuple[int, ...]:
        """Return the instances whose values an aggregate or a push combines, in order."""
        source = self.scope_of(operator.inputs[0])
        ranks = self.ranks_of(operator.scope, instance)
        return tuple(sorted({self.instance_of(source, rank) for rank in ranks}))

    def tree(self, operator: PlanOperator, instance: int) -> Tree:
        """Return the order in which the members' values are added (semantics.md section 4)."""
        return sum_tree(self.members(operator, instance))

    def every_step(self) -> Plan:
        """Return the plan with every edge delivering in every step."""
        return replace(
            self,
            operators=tuple(
                replace(o, inputs=tuple(replace(p, every=1) for p in o.inputs))
                for o in self.operators
            ),
        )

    def edge_name(self, operator: PlanOperator, number: int) -> str:
        """Return what messages call an input: ``source -> reader``."""
        return f"{operator.inputs[number].source} -> {operator.name}"

    def combines(self, operator: PlanOperator) -> bool:
        """Tell whether an operator reads values of a finer scope than its own."""
        if isinstance(operator.action, Aggregate):
            return True
        if not operator.writes or operator.inputs[0].table:
            return False
        return self.instances(self.scope_of(operator.inputs[0])) > self.instances(operator.scope)


def loss_operator(plan: Plan) -> str | None:
    """Return the gradient whose loss the history shows: the first one of the plan."""
    return next((o.name for o in plan.steps if o.kind == "gradient"), None)


LONGEST_HORIZON = 512
"""Steps that are looked at to see whether an edge ever keeps or holds a value."""


@dataclass(frozen=True)
class Firing:
    """Which operators fire in a step, and which edges deliver: a fact of the periods alone.

    Notes
    -----
    semantics.md section 3. Out of a table an edge with period h delivers when c % h == 0, out of
    an operator when (c + 1) % h == 0. An operator fires with the fastest of its operator inputs
    (of its tables if it has no others), once each input has delivered at least once.
    """

    plan: Plan
    _memo: dict[tuple[str, int], bool] = field(default_factory=dict, repr=False, compare=False)
    _first: dict[PlanPort, tuple[int | None, int]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """The first step in which an edge delivers, or None, and how far that is known."""
    _holds: dict[tuple[str, PlanPort], bool] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def is_steady(self) -> bool:
        """Whether no edge has a period: all operators fire and all edges deliver in every step."""
        return all(p.every == 1 for o in self.plan.operators for p in o.inputs)

    @cached_property
    def horizon(self) -> int:
        """Steps after which every edge has delivered, and edges of all periods took turns."""
        return max(512, 2 * sum(p.every for o in self.plan.operators for p in o.inputs))

    def pattern(self, step: int) -> frozenset[str]:
        """Return the names of the operators that fire in ``step``."""
        return frozenset(o.name for o in self.plan.steps if self.fires(o, step))

    def fires(self, operator: PlanOperator, step: int) -> bool:
        """Tell whether an operator fires in ``step``."""
        if self.is_steady:
            return True
        key = (operator.name, step)
        if key not in self._memo:
            if len(self._memo) > 100_000:
                self._memo.clear()
            self._memo[key] = self._fires(operator, step)
        return self._memo[key]

    def _fires(self, operator: PlanOperator, step: int) -> bool:
        driving = [p for p in operator.inputs if self._drives(p)]
        driving = driving or [p for p in operator.inputs if p.table]
        if not driving:
            return True
        return any(self.delivers(p, step) for p in driving) and all(
            self.delivered_by(p, step) for p in operator.inputs
        )

    def _drives(self, port: PlanPort) -> bool:
        return not port.table and not isinstance(self.plan.operator(port.source).action, Here)

    def delivers(self, port: PlanPort, step: int) -> bool:
        """Tell whether an edge hands over a new value in ``step``."""
        if port.table:
            return step % port.every == 0
        source = self.plan.operator(port.source)
        if port.every == 1:
            return self.fires(source, step)
        if (step + 1) % port.every:
            return False
        return any(self.fires(source, s) for s in range(max(0, step - port.every + 1), step + 1))

    def delivered_by(self, port: PlanPort, step: int) -> bool:
        """Tell whether an edge has handed over any value up to ``step``."""
        if port.table or self.delivers(port, step):
            return True
        first, seen = self._first.get(port, (None, -1))
        while first is None and seen < step:
            seen += 1
            first = seen if self.delivers(port, seen) else None
        self._first[port] = (first, seen)
        return first is not None and first <= step

    def meeting(self, step: int) -> frozenset[int]:
        """Return the phases that end with a barrier: all that are busy, if ranks share anything."""
        if self.plan.own_copies:
            shared = {p.source for o in self.plan.steps for p in o.inputs if p.crosses}
            return frozenset(self.plan.operator(name).phase for name in shared)
        busy: set[int] = set()
        shares = False
        for operator in self.plan.steps:
            crossing = any(p.crosses and self.delivers(p, step) for p in operator.inputs)
            if crossing or self.fires(operator, step):
                busy.add(operator.phase)
                shares = shares or crossing or operator.scope != REPLICA
        return frozenset(busy if shares else ())

    def keeps(self, port: PlanPort) -> bool:
        """Tell whether an edge with a period has to keep values between its firings.

        Notes
        -----
        It need not when the newest value of a table is wanted and its write fires in every step
        in which the edge delivers. Other values have examples, which add up.
        """
        if port.table or port.every == 1:
            return False
        source = self.plan.operator(port.source)
        return (
            port.keep != "last"
            or source.writes is None
            or any(
                self.delivers(port, s) and not self.fires(source, s) for s in range(self.horizon)
            )
        )

    def holds(self, port: PlanPort, reader: PlanOperator) -> bool:
        """Tell whether the reader ever fires while the edge delivers nothing new."""
        if (port.table and port.every == 1) or self.is_steady:
            return False
        key = (reader.name, port)
        if key not in self._holds:
            self._holds[key] = any(
                self.fires(reader, s) and not self.delivers(port, s) for s in range(self.horizon)
            )
        return self._holds[key]
