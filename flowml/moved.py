"""What a run moved between its replicas: bytes of each edge, from the plan or as they were counted.

An edge carries what its source writes once for all readers: a contribution of each replica, made
small by a codec if there is one. An edge out of a table carries a copy for each reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowml.codecs.contract import Codec, nbytes
from flowml.compiler.traffic import Traffic, known_layouts, layout_of_source
from flowml.freshness import Promises, loosest
from flowml.layout import Layout
from flowml.plan import Plan, PlanOperator
from flowml.runtime.loose_rank import KINDS
from flowml.runtime.outcome import Outcome
from flowml.types import Array


@dataclass(frozen=True)
class EdgeBytes:
    """What one edge carried, over all replicas.

    Attributes
    ----------
    edge : str
        ``source -> reader``.
    promise : str
        "sync", "stale(4)" or "async": the loosest of the run.
    every : int
        Steps from one delivery to the next.
    codec : str
        Its name; "" where there is none.
    a_step : float or None
        Bytes, averaged over the edge's period; None where the size of its values is not known.
    whole : float or None
        Bytes without the codec, the same way.
    """

    edge: str
    promise: str
    every: int
    codec: str
    a_step: float | None
    whole: float | None


def edge_bytes(outcome: Outcome) -> tuple[EdgeBytes, ...]:
    """Return what each edge that crosses between replicas carried in a step, by the plan."""
    plan = outcome.plan
    layouts = known_layouts(plan, dict(outcome.layouts))
    traffic = Traffic.of(plan, layouts)
    everyone = (tuple(range(plan.replicas)),)
    found = []
    for reader in plan.steps:
        for number, port in enumerate(reader.inputs):
            carried = traffic.edge(reader, number, "", everyone)
            if not carried.crosses:
                continue
            whole = carried.written_bytes
            if port.table:
                whole = _when_read(traffic, reader, number, carried.read_bytes)
            found.append(
                EdgeBytes(
                    carried.edge,
                    promise_words(port.promises),
                    port.every,
                    "" if port.codec is None else str(port.codec),
                    _with_codec(plan, layouts, reader, number, whole),
                    whole,
                )
            )
    return tuple(found)


def total_bytes(outcome: Outcome) -> float | None:
    """Return what all edges of a run carried: as counted in its record, else by the plan."""
    if outcome.record is not None:
        return float(outcome.record["bytes"].sum())
    found = [edge.a_step for edge in edge_bytes(outcome)]
    if None in found:
        return None
    return outcome.steps * sum(nbytes for nbytes in found if nbytes is not None)


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


def _when_read(
    traffic: Traffic, reader: PlanOperator, number: int, nbytes: float | None
) -> float | None:
    """Return the bytes of an edge out of a table in the steps in which its reader fires.

    Notes
    -----
    Such an edge is there in every step, also where its reader waits for a slower input.
    """
    port, firing = reader.inputs[number], traffic.firing
    delivers = traffic.mean(lambda step: firing.delivers(port, step))
    reads = traffic.mean(lambda step: firing.delivers(port, step) and firing.fires(reader, step))
    return None if nbytes is None or not delivers else nbytes * reads / delivers


def _with_codec(
    plan: Plan,
    layouts: Mapping[tuple[str, int], Layout],
    reader: PlanOperator,
    number: int,
    whole: float | None,
) -> float | None:
    port = reader.inputs[number]
    layout = layout_of_source(plan, layouts, port)
    if port.codec is None or whole is None or layout is None or not layout.nbytes:
        return whole
    return whole * payload_bytes(port.codec, layout) / layout.nbytes


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
