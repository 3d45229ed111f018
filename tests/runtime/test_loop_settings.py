"""What a worker's event loop does seldom while a step loop runs in it, and often again after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distributed import Client, LocalCluster

from flowml.runtime._dask import interruptions
from flowml.runtime.loop_settings import SELDOM_MS, LoopSettings


@dataclass
class Times:
    """The settings of a worker, asked for in its event loop."""

    client: Client

    def now(self) -> dict[str, float]:
        def read(dask_worker: Any) -> dict[str, float]:
            found = interruptions(dask_worker).items()
            return {n: c.callback_time for n, c in found if c.is_running()}

        (found,) = self.client.run(read).values()
        return dict(found)


def test_ticks_are_seldom_while_any_run_is_there() -> None:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        times = Times(client)
        before = times.now()
        assert set(before) == set(SELDOM_MS)
        settings = LoopSettings(next(iter(cluster.workers.values())))
        seldom = {name: max(usual, SELDOM_MS[name]) for name, usual in before.items()}
        assert all(seldom[name] > before[name] for name in before)
        settings.begin("one", 1)
        assert times.now() == seldom
        settings.begin("two", 1)
        settings.end("one")
        assert times.now() == seldom
        settings.end("two")
        settings.end("two")
        assert times.now() == before
