"""For a cluster that lives long: ``dask scheduler --preload flowml.preload``.

The page ``/flowml`` is there before the first run, and flowml's part of the scheduler comes back
when the scheduler was started anew. Without it, both come with the first run.
"""

from __future__ import annotations

from typing import Any

from flowml.dashboard.plugin import FlowDashboard
from flowml.runtime.scheduler_plugin import FlowScheduler


async def dask_setup(scheduler: Any) -> None:
    """Install flowml's plugins; Dask calls this by its name."""
    for plugin in (FlowScheduler(), FlowDashboard()):
        await scheduler.register_scheduler_plugin(plugin, idempotent=True)
