"""Data on workers: which partitions each rank gets, loaded by Dask tasks where they are needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from distributed import Client, Future

from flowml.actions import Evaluate, Load
from flowml.data.dask_collections import DaskSource
from flowml.events import Loaded
from flowml.plan import Plan, PlanOperator
from flowml.runtime.feeding import (
    Feed,
    dealt_shares,
    dealt_sizes,
    loads,
    make_feed,
    partition_ids,
    seeds,
)
from flowml.runtime.outcome import Order
from flowml.runtime.remote import count_partition, load_rank
from flowml.runtime.shipping import ship

_kept: weakref.WeakKeyDictionary[Client, dict[tuple[Any, ...], list[Future[Any]]]] = (
    weakref.WeakKeyDictionary()
)
"""Shares that are already on workers, by client, for the next run on the same source."""

KEPT_SOURCES = 4
"""Sources whose shares are kept on workers; the oldest makes place."""


@dataclass(frozen=True)
class Placement:
    """Where each rank runs and how its tasks are called.

    Attributes
    ----------
    run : str
        Run id as text.
    workers : tuple of str
        Address of each rank's worker.
    suffix : str
        Eight hexadecimal digits with which the keys of this run end.
    """

    run: str
    workers: tuple[str, ...]
    suffix: str

    @property
    def distinct(self) -> tuple[str, ...]:
        """Each worker once, in the order of ranks."""
        return tuple(dict.fromkeys(self.workers))

    def key(self, kind: str, name: str, *numbers: int | str) -> tuple[Any, ...]:
        """Return a task key: prefix ``flowml:<kind>``, group with the operator's name."""
        return (f"flowml:{kind}-{name}.{self.suffix}", *numbers)


Finish: TypeAlias = Callable[[Sequence[Future[Any]], str], list[Any]]
"""Waits for tasks of an operator and returns what they return; the last item of a key is the
address of the worker that the task is pinned to."""


def place_data(
    plan: Plan, order: Order, client: Client, placement: Placement, finish: Finish
) -> dict[str, Feed]:
    """Bring each rank's data to its worker.

    Parameters
    ----------
    finish : callable
        Waits for tasks; raises if one fails or its worker is lost.

    Returns
    -------
    feeds
        The order of batches of each load.
    """
    feeds = {}
    for operator in loads(plan):
        action = operator.action
        assert isinstance(action, Load)
        if action.source.dealt:
            feed, tasks = _place_dealt(plan, operator, order, client, placement)
        elif isinstance(action.source, DaskSource):
            feed, tasks = _place_collection(plan, operator, order, client, placement, finish)
        else:
            feed, tasks = _place_partitions(plan, operator, order, client, placement, finish)
        finish(tasks, operator.name)
        feeds[operator.name] = feed
        rows = sum(o.share.rows for o in feed.orders)
        parts = sum(len(o.share.counts) for o in feed.orders)
        order.tell(Loaded(operator.name, parts, rows))
    return feeds


def _place_dealt(
    plan: Plan, operator: PlanOperator, order: Order, client: Client, placement: Placement
) -> tuple[Feed, list[Future[Any]]]:
    action = operator.action
    assert isinstance(action, Load)
    kept = _kept.setdefault(client, {})
    key = (action.source.token(), seeds(operator, order.seed), placement.workers)
    if key not in kept or any(f.status != "finished" for f in kept[key]):
        shares = dealt_shares(operator, plan.replicas, order.seed)
        kept[key] = [
            client.scatter([share], workers=[worker], hash=False)[0]
            for share, worker in zip(shares, placement.workers, strict=True)
        ]
        while len(kept) > KEPT_SOURCES:
            kept.pop(next(iter(kept)))
    sizes = dealt_sizes(len(action.source.rows()), plan.replicas)
    feed = make_feed(
        operator, [[n] for n in sizes], [[r] for r in range(plan.replicas)], order.seed
    )
    return feed, [
        _load(client, placement, operator, rank, [future]) for rank, future in enumerate(kept[key])
    ]


def _place_partitions(
    plan: Plan,
    operator: PlanOperator,
    order: Order,
    client: Client,
    placement: Placement,
    finish: Finish,
) -> tuple[Feed, list[Future[Any]]]:
    action = operator.action
    assert isinstance(action, Load)
    partitions = action.source.partitions()
    ids = partition_ids(len(partitions), plan.replicas)
    owner = {p: placement.workers[rank] for rank, mine in enumerate(ids) for p in mine}
    counting = {
        number: client.submit(
            count_partition,
            operator.name,
            ship(partition, partition),
            key=placement.key("load", operator.name, number, owner[number]),
            workers=[owner[number]],
            pure=False,
        )
        for number, partition in enumerate(partitions)
        if partition.rows is None
    }
    counted = dict(zip(counting, finish(list(counting.values()), operator.name), strict=True))
    counts = [int(counted.get(n, p.rows or 0)) for n, p in enumerate(partitions)]
    feed = make_feed(operator, [[counts[i] for i in mine] for mine in ids], ids, order.seed)
    return feed, [
        _load(client, placement, operator, rank, [ship(partitions[i], partitions[i]) for i in mine])
        for rank, mine in enumerate(ids)
    ]


def _place_collection(
    plan: Plan,
    operator: PlanOperator,
    order: Order,
    client: Client,
    placement: Placement,
    finish: Finish,
) -> tuple[Feed, list[Future[Any]]]:
    """Compute the blocks of a Dask collection on the workers that will train on them."""
    action = operator.action
    assert isinstance(action, Load)
    source: DaskSource = action.source
    partitions = source.delayed_partitions()
    ids = partition_ids(len(partitions), plan.replicas)
    owner = {p: placement.workers[rank] for rank, mine in enumerate(ids) for p in mine}
    assembled = []
    for number, blocks in enumerate(partitions):
        computed = client.compute(list(blocks), workers=[owner[number]], allow_other_workers=True)
        assembled.append(
            client.submit(
                source.assemble,
                *computed,
                key=placement.key("load", operator.name, number),
                workers=[owner[number]],
                pure=False,
            )
        )
    tasks = [
        _load(client, placement, operator, rank, [assembled[i] for i in mine])
        for rank, mine in enumerate(ids)
    ]
    counts = finish(tasks, operator.name)
    return make_feed(operator, counts, ids, order.seed), tasks


def _load(
    client: Client, placement: Placement, operator: PlanOperator, rank: int, parts: Sequence[Any]
) -> Future[Any]:
    return client.submit(
        load_rank,
        placement.run,
        operator.name,
        rank,
        *parts,
        key=placement.key("load", operator.name, -1 - rank, placement.workers[rank]),
        workers=[placement.workers[rank]],
        pure=False,
    )


def evaluation_data(operator: PlanOperator, client: Client, worker: str) -> list[Any]:
    """Return the blocks of an evaluation's source: futures on one worker, or partitions."""
    action = operator.action
    assert isinstance(action, Evaluate)
    source = action.source
    if source.dealt:
        kept = _kept.setdefault(client, {})
        key = (source.token(), "evaluate", worker)
        if key not in kept or kept[key][0].status != "finished":
            kept[key] = [client.scatter([source.rows()], workers=[worker], hash=False)[0]]
        return list(kept[key])
    return [ship(partition, partition) for partition in source.partitions()]
