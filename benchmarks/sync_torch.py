"""Torch's DistributedDataParallel with gloo, as a user who knows it would write it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from sync_case import (
    CLASSES,
    HIDDEN,
    LEARNING_RATE,
    PIXELS,
    REPLICAS,
    Case,
    Loop,
    batch_order,
)
from sync_processes import Seat
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from flowml.data import Rows
from flowml.types import Array


class DdpLoop:
    """Gather by ``index_select``, forward, backward with its all-reduce, SGD."""

    def __init__(self, case: Case, share: Rows, rank: int) -> None:
        X, y = share.columns
        self._X, self._y = torch.from_numpy(X), torch.from_numpy(y)
        self._order = batch_order(len(share), rank, case.batch)
        self._epoch, self._index = -1, torch.empty(0, dtype=torch.int64)
        self._layers = _network(case)
        self._network = DistributedDataParallel(self._layers, gradient_as_bucket_view=True)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=LEARNING_RATE)

    def step(self, number: int) -> None:
        """Make a step."""
        epoch, batch = divmod(number, self._order.batches())
        if epoch != self._epoch:
            self._epoch, self._index = epoch, torch.tensor(self._order.order(epoch, 0))
        size = self._order.batch_size or 0
        index = self._index[batch * size : (batch + 1) * size]
        X = torch.index_select(self._X, 0, index)
        y = torch.index_select(self._y, 0, index)
        self._optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(self._network(X), y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def parameters(self) -> Mapping[str, Array]:
        """Return the parameters as flowml's models name and shape them."""
        linear = [layer for layer in self._layers if isinstance(layer, torch.nn.Linear)]
        found = {}
        for number, layer in enumerate(linear):
            tail = str(number) if len(linear) > 1 else ""
            found[f"W{tail}"] = layer.weight.detach().numpy().T
            found[f"b{tail}"] = layer.bias.detach().numpy()
        return found


def _network(case: Case) -> Any:
    """Return the layers with the first parameters of flowml's model."""
    sizes = [PIXELS, CLASSES] if case.model == "softmax" else [PIXELS, HIDDEN, CLASSES]
    start = list(case.new_model().init(seed=0).values())
    layers: list[Any] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = torch.nn.Linear(inputs, outputs)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(start[2 * number].T.copy()))
            layer.bias.copy_(torch.from_numpy(start[2 * number + 1].copy()))
        layers += [torch.nn.ReLU(), layer] if number else [layer]
    return torch.nn.Sequential(*layers)


class Ddp:
    """One of two processes with one thread each, connected over the loopback interface."""

    def __init__(self, seat: Seat) -> None:
        torch.set_num_threads(1)
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo", init_method=f"file://{seat.meeting}", rank=seat.rank, world_size=REPLICAS
        )
        self._rank, self._share = seat.rank, seat.examples.share(REPLICAS, seat.rank)

    def open(self, case: Case) -> Loop:
        """Return a fresh loop."""
        return DdpLoop(case, self._share, self._rank)
