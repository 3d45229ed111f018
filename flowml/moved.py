"""What a run moved between its replicas: bytes of each edge, from the plan or as they were counted.

An edge carries what its source writes once for all readers: a contribution of each replica, made
small by a codec if there is one. An edge out of a table carries a copy for each reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowml.codecs.contract import Codec, nbytes
from flowml.compiler.layouts import known_layouts, layout_of_source
from flowml.compiler.loose_traffic import LooseTraffic
from flowml.compiler.traffic import EdgeTraffic, Traffic
from flowml.freshness import Promises, loosest
from flowml.layout import Layout
from flowml.plan import Plan
from flowml.runtime.loose_plan import is_loose
from flowml.runtime.loose_rank import KINDS
from flowml.runtime.moved import Moved
from flowml.runtime.moved_loose import moved_of
from flowml.runtime.outcome import Outcome
from flowml.types import Array


@dataclass(frozen=True)
class EdgeBytes:
    """What one edge that crosses between replicas carried, over all of them.

    Attributes
    ----------
    edge : str
        ``source -> reader``.
    promise : str
        "sync", "stale(4)" or "async": the loosest of the run.
    every : int
        Steps from one delivery to the next.
    codec : str
        As it is written; "" where there is none.
    a_step : float or None
        Bytes written to and read from what replicas share, averaged over the steps; None where
        the size of its values is not known.
    smaller : float or None
        How many times smaller the codec makes a value; None where there is none.
    """

    edge: str
    promise: str
    every: int
    codec: str
    a_step: float | None
    smaller: float | None


def edge_bytes(outcome: Outcome) -> tuple[EdgeBytes, ...]:
    """Return what each edge that crosses between replicas carried in a step.

    Notes
    -----
    As it was counted where the run counted it: at its buffers, or in its record. Else by the
    plan, as replicas that share the memory of one host carry it.
    """
    plan = outcome.plan
    layouts = known_layouts(plan, dict(outcome.layouts))
    smaller = dict(_codec_ratios(plan, layouts))
    planned = {carried.edge: carried for carried in _by_plan(plan, layouts)}
    counted = counted_moved(outcome)
    found = []
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            edge = plan.edge_name(reader, number)
            if not planned[edge].crosses:
                continue
            a_step = sum_known(planned[edge].written_bytes, planned[edge].read_bytes)
            if counted is not None:
                a_step = (counted.written[edge] + counted.read[edge]) / max(1, outcome.steps)
            found.append(
                EdgeBytes(
                    edge,
                    promise_words(port.promises),
                    port.every,
                    "" if port.codec is None else str(port.codec),
                    a_step,
                    smaller.get(edge),
                )
            )
    return tuple(found)


def counted_moved(outcome: Outcome) -> Moved | None:
    """Return what a run counted as moved; None where its executor and options count nothing."""
    if outcome.record is not None:
        return moved_of(outcome.plan, outcome.record)
    return outcome.moved if outcome.moved.written else None


def total_bytes(outcome: Outcome) -> float | None:
    """Return what all edges of a run carried."""
    a_step = sum_known(*(edge.a_step for edge in edge_bytes(outcome)))
    return None if a_step is None else outcome.steps * a_step


def sum_known(*counts: float | None) -> float | None:
    """Return a sum, or None if a part of it is not known."""
    known = [count for count in counts if count is not None]
    return float(sum(known)) if len(known) == len(counts) else None


def counted_bytes(record: Array) -> dict[str, int]:
    """Return the bytes of the reads and of the deliveries of a recorded run."""
    kinds = ((kind, record["kind"] == number) for number, kind in enumerate(KINDS))
    return {kind: int(record["bytes"][mine].sum()) for kind, mine in kinds}


def promise_words(promises: Promises) -> str:
    """Return the loosest promise of a schedule as it is written.

    Examples
    --------
    >>> promise_words(((0, 0.0), (500, 4.0))), promise_words(((0, float("inf")),))
    ('stale(4)', 'async')
    """
    staleness = loosest(promises)
    if not staleness:
        return "sync"
    return "async" if staleness == float("inf") else f"stale({int(staleness)})"


def _by_plan(plan: Plan, layouts: Mapping[tuple[str, int], Layout]) -> Iterator[EdgeTraffic]:
    payloads = {
        edge: float(payload_bytes(codec, layout)) for edge, codec, layout in _coded(plan, layouts)
    }
    everyone = (tuple(range(plan.replicas)),)
    traffic = Traffic.of(plan, layouts, everyone, payloads)
    counter = LooseTraffic.of(traffic) if is_loose(plan) else traffic
    for reader in plan.steps:
        for number in range(len(reader.inputs)):
            yield counter.edge(reader.name, number, "", everyone)


def _coded(
    plan: Plan, layouts: Mapping[tuple[str, int], Layout]
) -> Iterator[tuple[str, Codec, Layout]]:
    """Yield the edges with a codec whose values have a known size."""
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            layout = layout_of_source(plan, layouts, port)
            if port.codec is not None and layout is not None and layout.nbytes:
                yield plan.edge_name(reader, number), port.codec, layout


def _codec_ratios(
    plan: Plan, layouts: Mapping[tuple[str, int], Layout]
) -> Iterator[tuple[str, float]]:
    for edge, codec, layout in _coded(plan, layouts):
        yield edge, layout.nbytes / payload_bytes(codec, layout)


def payload_bytes(codec: Codec, layout: Layout) -> int:
    """Return the bytes of one value as a codec sends it, of normal random numbers.

    Notes
    -----
    For most codecs a fact of the shape; ``threshold`` sends what the values ask for.
    """
    rng, total = np.random.default_rng(0), 0
    for leaf in layout.leaves:
        dtype = layout.dtypes[leaf.buffer]
        values: Any = rng.standard_normal(leaf.shape).astype(dtype)
        payload, _ = codec.encode(np.asarray(values, dtype), codec.init(leaf.shape, dtype, 0))
        total += nbytes(payload)
    return total
