"""What travels to workers once in a run: the plan, and partitions that are read there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cloudpickle

from flowml.data.source import Partition
from flowml.plan import Plan
from flowml.runtime.outcome import Order
from flowml.runtime.shipping import ship, ship_plan


@dataclass(frozen=True)
class Shipment:
    """What tasks need of a run; every task reads it by reference.

    Attributes
    ----------
    plan : Plan
        Without the sources, except in a standalone graph.
    order : Order
    token : str
        Names the run; stands for the contents in Dask's tokens.
    """

    plan: Plan
    order: Order
    token: str

    def __dask_tokenize__(self) -> tuple[str, str]:
        return ("flowml", self.token)

    def __reduce__(self) -> tuple[Any, ...]:
        shipped = ship_plan((self.plan, self.order, self.token), self.plan)
        return _opened, (shipped,)


def _opened(shipped: bytes) -> Shipment:
    return Shipment(*cloudpickle.loads(shipped))


@dataclass(frozen=True)
class Shipped:
    """A partition that travels with the user's functions by value."""

    partition: Partition

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (ship(self.partition, self.partition),)


def _unpacked(shipped: bytes) -> Shipped:
    return Shipped(cloudpickle.loads(shipped))
