"""What an edge promises: how fresh, how often, from how many, in which form.

An edge is a value. Each method returns another edge with one thing more, and refuses at the call
what cannot mean anything, naming the line of the user's file. The promise and all that goes with
it stand here and nowhere else, so the compiler and the runtime may rely on these sentences:

- an edge has at most one promise for each step; ``until`` lists the earlier ones, in order of
  steps, and ``promise`` is the last, which holds from then on;
- ``promise is None`` and ``until == ()``: unmarked, the compiler takes the loosest promise of the
  edge's loop; ``promise is None`` and ``until != ()``: the schedule is not finished;
- ``stale(0)`` is ``sync``.

On the way over an edge the period comes first (time), then the codec (space).

References
----------
Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server",
NeurIPS 2013, section 3. Here a reader sees its own pushes and a contiguous prefix of those of
every other writer; ``stale(0)`` also hides what is fresher.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

from flowml.errors import GraphError
from flowml.types import calling_site

Kind = Literal["sync", "stale", "async"]
Keep = Literal["sum", "mean", "last"]
Late = Literal["carry", "drop"]


@dataclass(frozen=True)
class Promise:
    """How far what a consumer is shown may lag behind its producers.

    Attributes
    ----------
    kind : {"sync", "stale", "async"}
        ``sync`` waits for everything, ``stale`` for all but the last steps, ``async`` for nothing.
    staleness : int or None
        Steps that may be missing, >= 0: 0 for ``sync``, None (no bound) for ``async``. It is set
        from ``kind`` where that leaves no choice, and ``Promise("stale", 0)`` becomes ``sync``.

    Raises
    ------
    GraphError
        For another kind, or a staleness that is no integer >= 0.

    Examples
    --------
    >>> Promise("stale", 0) == Promise("sync")
    True
    >>> print(Promise("stale", 4), Promise("async"))
    stale(4) async
    """

    kind: Kind
    staleness: int | None = None

    def __post_init__(self) -> None:
        _one_of("a promise", self.kind, get_args(Kind))
        bound = None
        if self.kind == "sync":
            bound = 0
        elif self.kind == "stale":
            bound = _whole(".stale(s)", self.staleness, 0, "stale(0) is sync().")
        object.__setattr__(self, "staleness", bound)
        if bound == 0:
            object.__setattr__(self, "kind", "sync")

    def __str__(self) -> str:
        return f"stale({self.staleness})" if self.kind == "stale" else self.kind


@dataclass(frozen=True)
class Period:
    """How often an edge fires, and what becomes of the steps between.

    Attributes
    ----------
    steps : int
        One firing every so many steps, >= 1.
    keep : {"sum", "mean", "last"} or None
        How the values of the steps between are joined; None leaves it to the consumer.
    """

    steps: int
    keep: Keep | None = None

    def __str__(self) -> str:
        return f"every({self.steps}, {self.keep})" if self.keep else f"every({self.steps})"


@dataclass(frozen=True)
class Quorum:
    """How many contributions a firing waits for.

    Attributes
    ----------
    count : int
        Contributions, >= 1; with fewer live producers, all of them.
    late : {"carry", "drop"}
        A later contribution joins the next firing, or is counted and dropped.
    """

    count: int
    late: Late = "carry"

    def __str__(self) -> str:
        return f"quorum({self.count}, {self.late})"


@dataclass(frozen=True)
class When:
    """A filter by size: an edge fires when what it kept is large enough to matter.

    Attributes
    ----------
    threshold : float
        Size of the kept update relative to the parameter, >= 0 and finite. No unit.
    """

    threshold: float

    def __str__(self) -> str:
        return f"when({self.threshold})"


@dataclass(frozen=True)
class Edge:
    """Everything that the way from a producer to a consumer promises.

    Attributes
    ----------
    promise : Promise or None
        What holds from the last step of ``until`` on; None where nothing was said.
    until : tuple of (int, Promise)
        Earlier promises, each with the step at which it ends, in increasing order.
    period : Period or None
        How often it fires; None is every step.
    members : Quorum or None
        How many contributions a firing waits for; None is all of them.
    filter : When or None
        How large the kept update must be to travel; None lets all of them pass.
    codec : object or None
        A codec of `flowml.codecs`, or one that keeps the same contract.
    ids : object or None
        The handle of the row ids, where the edge reads or writes rows.

    Examples
    --------
    >>> print(Edge().sync(until=500).stale(4).every(8, keep="mean").describe())
    sync(until=500), stale(4), every(8, mean)
    """

    promise: Promise | None = None
    until: tuple[tuple[int, Promise], ...] = ()
    period: Period | None = None
    members: Quorum | None = None
    filter: When | None = None
    codec: Any = None
    ids: Any = None

    def sync(self, until: int | None = None) -> Edge:
        """Promise exactly what the consumer's step needs, and nothing fresher.

        Parameters
        ----------
        until : int, optional
            The step, >= 1, at which the promise written next takes over.

        Raises
        ------
        GraphError
            If the edge has a promise already, or ``until`` is no later step.
        """
        return self._promised(Promise("sync"), until)

    def stale(self, staleness: int, until: int | None = None) -> Edge:
        """Promise all but the last ``staleness`` steps, or fresher; 0 is ``sync``.

        Parameters
        ----------
        staleness : int
            Steps that may be missing, >= 0.
        until : int, optional
            As in `sync`.

        Raises
        ------
        GraphError
            As `sync`, and if ``staleness`` is no integer >= 0.
        """
        # not Promise("stale", staleness): a None written by the user must be refused, too
        steps = _whole(".stale(s)", staleness, 0, "stale(0) is sync().")
        return self._promised(Promise("stale", steps), until)

    def async_(self, until: int | None = None) -> Edge:
        """Promise the newest value that has arrived, without waiting; ``until`` as in `sync`."""
        return self._promised(Promise("async"), until)

    def every(self, steps: int, keep: Keep | None = None) -> Edge:
        """Fire once every ``steps`` steps, >= 1.

        Parameters
        ----------
        keep : {"sum", "mean", "last"}, optional
            What the values of the steps between become; left out, what the consumer would have
            done with them (out of a table: the last).

        Raises
        ------
        GraphError
            If the edge has a period already, or an argument is none of these.
        """
        _once("period", self.period, "Keep the period that you mean.")
        count = _whole(".every(h)", steps, 1, "every(1) is every step.")
        if keep is not None:
            _one_of("keep of .every()", keep, get_args(Keep))
        return replace(self, period=Period(count, keep))

    def quorum(self, count: int, late: Late = "carry") -> Edge:
        """Fire with the first ``count`` contributions, >= 1.

        Parameters
        ----------
        late : {"carry", "drop"}
            A later contribution joins the next firing, or is counted and dropped.

        Raises
        ------
        GraphError
            If the edge has a quorum already, or an argument is none of these.
        """
        _once("quorum", self.members, "Keep the quorum that you mean.")
        number = _whole(".quorum(n)", count, 1, "It counts contributions.")
        _one_of("late of .quorum()", late, get_args(Late))
        return replace(self, members=Quorum(number, late))

    def when(self, threshold: float) -> Edge:
        """Fire when the kept update exceeds ``threshold``, >= 0, relative to the parameter.

        Raises
        ------
        GraphError
            If the edge has a threshold already, or this is no finite number >= 0.
        """
        _once("threshold", self.filter, "Keep the threshold that you mean.")
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold) or threshold < 0:
            raise _refusal(
                ".when(t) needs a finite number t >= 0",
                repr(threshold),
                "0.01 lets an update pass that changes its parameter by more than 1 %.",
            )
        return replace(self, filter=When(float(threshold)))

    def compress(self, codec: object) -> Edge:
        """Encode what travels on the edge with a codec.

        Raises
        ------
        GraphError
            If the edge has a codec already, or this is none (a codec states its ``feedback``).
        """
        _once("codec", self.codec, "Keep the codec that you mean.")
        if not isinstance(getattr(codec, "feedback", None), bool):
            raise _refusal(
                ".compress(codec) needs a codec",
                getattr(codec, "__name__", repr(codec)),
                "For example fl.codecs.top_k(0.01).",
            )
        return replace(self, codec=codec)

    def at(self, ids: object) -> Edge:
        """Read or write only the rows that the handle ``ids`` names.

        Raises
        ------
        GraphError
            If the edge has row ids already, or ``ids`` is None.
        """
        _once("row ids", self.ids, "Join the ids in an operator before the edge.")
        if ids is None:
            raise _refusal(".at(ids) needs the handle of the row ids", "None", "Leave .at out.")
        return replace(self, ids=ids)

    def promise_at(self, step: int) -> Promise | None:
        """Return the promise that holds at a step (from 0), None where none was given.

        Examples
        --------
        >>> edge = Edge().sync(until=500).async_()
        >>> print(edge.promise_at(499), edge.promise_at(500))
        sync async
        """
        return next((p for end, p in self.until if step < end), self.promise)

    def describe(self) -> str:
        """Return the few words that a drawn graph shows; empty for an unmarked edge."""
        words = [_scheduled(promise, step) for step, promise in self.until]
        given = (self.promise, self.period, self.members, self.filter, self.codec)
        words += [str(part) for part in given if part is not None]
        if self.ids is not None:
            words.append("at(ids)")
        return ", ".join(words)

    def _promised(self, promise: Promise, until: int | None) -> Edge:
        if self.promise is not None:
            wanted = str(promise) if until is None else _scheduled(promise, until)
            raise _refusal(
                "an edge has one promise at a time",
                f"{self.promise} and then {wanted}",
                "Drop one, or give the earlier one its end, as in .sync(until=500).stale(4).",
            )
        if until is None:
            return replace(self, promise=promise)
        previous = self.until[-1][0] if self.until else 0
        end = _whole("until=", until, previous + 1, "It is the first step of the next promise.")
        return replace(self, until=(*self.until, (end, promise)))


def _scheduled(promise: Promise, until: int) -> str:
    if promise.kind == "stale":
        return f"stale({promise.staleness}, until={until})"
    return f"{promise.kind}(until={until})"


def _refusal(required: str, got: str, fix: str) -> GraphError:
    site = calling_site()
    return GraphError(str(site), required, got, fix, site=site)


def _once(what: str, present: object | None, fix: str) -> None:
    if present is not None:
        raise _refusal(f"an edge has one {what} at most", f"a second one after {present}", fix)


def _whole(what: str, value: object, least: int, fix: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise _refusal(f"{what} needs an integer >= {least}", repr(value), fix)
    return int(value)


def _one_of(what: str, word: object, known: tuple[str, ...]) -> None:
    if word in known:
        return
    near = difflib.get_close_matches(str(word), known, n=1)
    fix = f"Did you mean {near[0]!r}?" if near else f"For example {known[0]!r}."
    raise _refusal(f"{what} must be one of {', '.join(map(repr, known))}", repr(word), fix)
