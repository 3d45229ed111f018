"""Small graphs that the compiler's tests share, and a strategy that makes any graph at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import flowml as fl

X = np.random.default_rng(0).normal(size=(24, 3))
START = np.zeros(3)


def grad(w: Any, x: Any) -> Any:
    """Return something of the shape of the table that depends on all inputs."""
    return w + x.mean(0)


def both(*values: Any) -> Any:
    """Return the sum of the inputs."""
    return sum(values[1:], start=values[0])


def batch(**options: Any) -> Any:
    return fl.load(X, batch_size=2, **options)


def table(name: str = "w", scope: str = "global", **options: Any) -> Any:
    return fl.table(name, START, scope=scope, **options)


def ssgd(
    read: Callable[[Any], Any] = lambda w: w,
    gather: Callable[[Any], Any] = lambda g: g,
    push: Callable[[Any], Any] = lambda m: m,
    how: Any = "mean",
) -> fl.Graph:
    """Return synchronous SGD whose three edges may be marked."""
    w = table()
    mean = fl.aggregate(how, gather(fl.map(grad, read(w), batch(), name="grad")), name="mean")
    return fl.Graph(fl.update(w, push(mean), fl.sgd(0.1)), name="ssgd")


def local_sgd(period: int = 3) -> fl.Graph:
    anchor, local = table("anchor"), table("local", "replica")
    moved = fl.update(local, fl.map(grad, local, batch(), name="grad"), fl.sgd(0.1))
    drift = fl.map(np.subtract, anchor, moved.every(period), name="drift")
    outer = fl.update(anchor, fl.aggregate("mean", drift, weight="equal"), fl.sgd(1.0))
    return fl.Graph(moved, outer, fl.assign(local, outer), name="local_sgd")


def hierarchical() -> fl.Graph:
    w = table()
    inside = fl.aggregate(
        "mean", fl.map(grad, w, batch(), name="grad"), within="host", name="inside"
    )
    return fl.Graph(
        fl.update(w, fl.aggregate("mean", inside, name="across"), fl.sgd(0.1)), name="hierarchical"
    )


def kmeans() -> fl.Graph:
    centres = table("centres")
    totals = fl.aggregate("sum", fl.map(grad, centres, batch(), name="totals"), name="sum")
    fresh = fl.assign(centres, fl.map(both, centres, totals, name="means"))
    moved = fl.map(lambda old, new: float(np.abs(old - new).max()), centres, fresh, name="moved")
    return fl.Graph(fresh, fl.until(lambda m: m < 0, moved), name="kmeans")


def pushed(rule: Any = None) -> fl.Graph:
    w = table()
    return fl.Graph(
        fl.update(w, fl.map(grad, w, batch(), name="grad"), rule or fl.add(0.1)), name="pushed"
    )


def replica_table() -> fl.Graph:
    local = table("local", "replica")
    moved = fl.update(local, fl.map(grad, local, batch(), name="grad"), fl.sgd(0.1))
    again = fl.assign(local, fl.map(both, moved, name="again"))
    return fl.Graph(moved, again, name="replica_table")


KINDS = ("map", "aggregate", "update", "assign", "every", "until", "here")
SCOPES = ("replica", "host", "global")
"""From fine to coarse."""


class Sketch:
    """A graph in the making: values and tables with their scopes, and what was written."""

    def __init__(self, scopes: list[str]) -> None:
        self.tables = [(table(f"t{n}", scope), scope) for n, scope in enumerate(scopes)]
        self.values = [(fl.map(lambda x: x.mean(0), batch(), name="first"), "replica")]
        self.sinks: list[Any] = []
        self.written: dict[int, tuple[Any, str]] = {}

    def known(self, number: int) -> tuple[Any, str]:
        """Return a value or a table."""
        every = [*self.values, *self.tables]
        return every[number % len(every)]

    def add(self, value: Any, *inputs: tuple[Any, str]) -> None:
        """Remember a value of the finest scope of its inputs."""
        self.values.append((value, min((s for _, s in inputs), key=SCOPES.index)))

    def aggregate(self, one: tuple[Any, str], how: str, within: str | None) -> None:
        """Combine a value, if there is something to combine."""
        to = within or "global"
        if SCOPES.index(to) > SCOPES.index(one[1]):
            self.values.append((fl.aggregate(how, one[0], within=within), to))

    def write(self, number: int, value: tuple[Any, str], how: str) -> None:
        """Write a table, after what was written to it before."""
        target, scope = self.tables[number % len(self.tables)]
        before = self.written.get(number % len(self.tables))
        if before is not None:
            joined = min(value, before, key=lambda v: SCOPES.index(v[1]))[1]
            value = (fl.map(both, value[0], before[0]), joined)
        finer = SCOPES.index(value[1]) < SCOPES.index(scope)
        assigns = how == "assign" and not finer
        made = fl.assign(target, value[0]) if assigns else fl.update(target, value[0], fl.sgd(0.1))
        self.sinks.append(made)
        self.written[number % len(self.tables)] = (made, scope)
        self.values.append((made, scope))

    def period(self, one: tuple[Any, str], steps: int, keep: Any) -> None:
        """Read a value every few steps."""
        is_table = any(one[0] is handle for handle, _ in self.tables)
        self.add(fl.map(both, one[0].every(steps, keep=None if is_table else keep)), one)


@st.composite
def graphs(draw: st.DrawFn) -> Callable[[], fl.Graph]:
    """Give a function that declares some legal graph: the same one at each call."""
    scopes = draw(st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3))
    numbers = st.integers(0, 30)
    choices = draw(
        st.lists(
            st.tuples(
                st.sampled_from(KINDS),
                numbers,
                numbers,
                st.integers(1, 3),
                st.sampled_from(["mean", "sum", "median"]),
                st.sampled_from([None, "host"]),
                st.sampled_from([None, "sum", "mean", "last"]),
            ),
            min_size=1,
            max_size=8,
        )
    )

    def declare() -> fl.Graph:
        sketch = Sketch(scopes)
        for n, (kind, a, b, steps, how, within, keep) in enumerate(choices):
            one, two = sketch.known(a), sketch.known(b)
            if kind == "map":
                sketch.add(fl.map(both, one[0], two[0]), one, two)
            elif kind == "here":
                here = (fl.here(n), "replica")
                sketch.add(fl.map(noisy, one[0], here[0]), one, here)
            elif kind == "aggregate":
                sketch.aggregate(one, how, within)
            elif kind == "every":
                sketch.period(one, steps, keep)
            elif kind == "until" and one[1] == "global":
                sketch.sinks.append(fl.until(lambda v: bool(v[0] > 1e9), one[0]))
            elif kind in ("update", "assign"):
                sketch.write(b, sketch.values[a % len(sketch.values)], kind)
        last, first = sketch.values[-1], sketch.values[0]
        sketch.write(0, (fl.map(both, last[0], first[0]), "replica"), "update")
        return fl.Graph(*sketch.sinks, name="random")

    return declare


def noisy(x: Any, here: Any) -> Any:
    return x + here.rng().normal(size=3)


@st.composite
def scribbles(draw: st.DrawFn) -> Callable[[], fl.Graph]:
    """Give a function that declares a graph without a thought, most likely an illegal one."""
    scopes = draw(st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3))
    numbers = st.integers(0, 30)
    choices = draw(
        st.lists(
            st.tuples(st.sampled_from(KINDS), numbers, numbers, st.sampled_from([None, "host"])),
            max_size=8,
        )
    )
    bare = draw(st.booleans())

    def declare() -> fl.Graph:
        tables = [table(f"t{n}", scope) for n, scope in enumerate(scopes)]
        values: list[Any] = [tables[0] if bare else fl.map(np.mean, batch(), name="first")]
        sinks: list[Any] = []
        for kind, a, b, within in choices:
            one, two = ([*values, *tables][n % (len(values) + len(tables))] for n in (a, b))
            if kind == "map":
                values.append(fl.map(both, one, two))
            elif kind == "aggregate":
                values.append(fl.aggregate("mean", one, within=within))
            elif kind == "every":
                values.append(fl.map(both, one.stale(2).every(2, keep="mean")))
            elif kind == "until":
                sinks.append(fl.until(bool, one))
            elif kind == "here":
                values.append(fl.here())
            else:
                sinks.append(
                    fl.assign(two, one) if kind == "assign" else fl.update(two, one, fl.sgd(0.1))
                )
                values.append(sinks[-1])
        return fl.Graph(*sinks, name="random")

    return declare
