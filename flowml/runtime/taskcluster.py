"""Graphs and values on the cluster, and the futures that keep them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.typing import Key

from flowml.runtime._dask import gather_within
from flowml.runtime.tasklookout import Lookout
from flowml.runtime.taskwindow import DaskClient, DaskFuture, Tasks

Place = Callable[[Key], list[str]]
"""Gives the addresses of the workers on which a key may be computed."""


@dataclass
class TaskCluster:
    """A client's side of the tasks of one run.

    Attributes
    ----------
    name : str
        Of the graphs, in Dask's own messages.
    futures : dict of Key to Future
        What Dask has to keep.
    """

    client: DaskClient
    lookout: Lookout
    name: str
    futures: dict[Key, DaskFuture] = field(default_factory=dict)

    def put(self, values: dict[Key, Any], workers: Sequence[str]) -> None:
        """Send values to each of some workers, and keep them there."""
        if values:
            self.futures |= self.client.scatter(
                values, workers=list(workers), broadcast=len(workers) > 1
            )

    def submit(self, tasks: Tasks, outputs: Iterable[Key], place: Place) -> list[DaskFuture]:
        """Submit a graph as it is, and keep its outputs.

        Notes
        -----
        A layer is neither hashed (``Client.get`` on a dict hashes every task) nor fused. Dask's
        scheduler asks ``place`` for each key.
        """
        layer = MaterializedLayer(tasks, annotations={"workers": place})
        keys = list(outputs)
        made = self.client.get(
            HighLevelGraph({self.name: layer}, {self.name: set()}), keys, sync=False
        )
        self.futures |= zip(keys, made, strict=True)
        return list(made)

    def fetch(self, tasks: Tasks, place: Place) -> list[Any]:
        """Compute tasks and return their values, of which nothing stays on the cluster.

        Raises
        ------
        FlowmlError
            What the first of them raised.
        """
        futures = self.submit(tasks, tasks, place)
        try:
            self.lookout.settle(futures)
            return self.lookout.gather(futures)
        finally:
            self.keep(self.futures.keys() - tasks.keys())

    def values(self, keys: Iterable[Key]) -> list[Any]:
        """Return values that have been computed."""
        return self.lookout.gather([self.futures[key] for key in keys])

    def rescue(self, keys: Sequence[Key], seconds: float) -> list[Any] | None:
        """Return values of a cluster in trouble, or None if they cannot be had in time."""
        if not keys or any(key not in self.futures for key in keys):
            return None
        return gather_within(self.client, [self.futures[key] for key in keys], seconds)

    def keep(self, keys: Iterable[Key]) -> None:
        """Let Dask forget all values but these."""
        for key in self.futures.keys() - set(keys):
            self.futures.pop(key).release()
