"""What replicas share: its memory does not grow with what passes through it."""

from __future__ import annotations

import gc

import numpy as np
import psutil
import pytest

import flowml as fl
from flowml.cluster_run import probe_here
from flowml.compiler.stages import compile_graph
from flowml.runtime.center import Center
from flowml.runtime.center_memory import CenterMemory
from flowml.runtime.contributions import Contribution
from flowml.runtime.loose_plan import split
from flowml.runtime.outcome import Order

PUSHES = 100_000
GROWTH_BYTES = 1 << 20
"""What an allocator may keep by the way; a float kept for each push would be three times that."""


@pytest.mark.parametrize("push", [True, False], ids=["push", "mean"])
def test_it_stays_flat_under_many_updates(push: bool) -> None:
    model = fl.models.linear(3)
    w = fl.table("w", model.init(seed=0))
    batch = fl.load((np.ones((8, 3), "float32"), np.ones(8, "float32")), batch_size=2)
    grads = fl.gradient(model, w.async_(), batch)
    value = grads if push else fl.aggregate("mean", grads)
    plan = compile_graph(fl.Graph(fl.update(w, value, fl.adam(1e-3))).logical, 2)
    layouts, loose = probe_here(plan, Order(1, None)), split(plan)
    center = Center(loose, layouts, CenterMemory.private(loose, layouts, 0))
    center.rule.begin()
    content = tuple(np.ones_like(b) for b in layouts["w", -1].allocate())

    def deliver(count: int) -> None:
        for number in range(count):
            center.rule.read()
            center.deliver(0, number % 2, {0: Contribution(2.0, 2.0, content)}, number % 2)

    process = psutil.Process()
    deliver(2000)
    gc.collect()
    before = process.memory_info().rss
    deliver(PUSHES)
    gc.collect()
    grown = process.memory_info().rss - before
    assert center.rule.updates("w") == PUSHES + 2000
    assert grown < GROWTH_BYTES
