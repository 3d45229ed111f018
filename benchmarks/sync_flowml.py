"""flowml's resident executor: load -> gradient -> mean -> sgd on two workers."""

from __future__ import annotations

from typing import Any

import numpy as np
from distributed import Client
from sync_case import LEARNING_RATE, LOAD, REPLICAS, Case, Examples

import flowml as fl


class Resident:
    """Synchronous SGD on a cluster that stays open; the shares stay on its workers."""

    def __init__(self, client: Client, examples: Examples) -> None:
        self._client = client
        self._source = fl.data.arrays(*examples.arrays())
        self._graphs: dict[Case, fl.Graph] = {}
        self.median_step = 0.0
        """Of rank 0 in the last run: seconds from the start of a step to its end."""

    def seconds(self, case: Case, steps: int) -> float:
        """Return wall time of the step loop by its steps: windows and their submission included."""
        run = self._run(case, steps)
        history = run.history
        self.median_step = float(np.median(history["seconds"][history["replica"] == 0]))
        return float(run.seconds / run.steps)

    def parameters(self, case: Case, steps: int) -> dict[str, Any]:
        """Return the parameters after some steps."""
        found: dict[str, Any] = self._run(case, steps).tables["w"]
        return found

    def _run(self, case: Case, steps: int) -> Any:
        graph = self._graphs.get(case) or self._declared(case)
        self._graphs[case] = graph
        return graph.run(
            steps=steps,
            replicas=REPLICAS,
            executor="resident",
            cluster=self._client,
            progress=False,
        )

    def _declared(self, case: Case) -> fl.Graph:
        model = case.new_model()
        w = fl.table("w", model.init(seed=0))
        batch = fl.load(self._source, batch_size=case.batch, drop_last=True, name=LOAD)
        mean = fl.aggregate("mean", fl.gradient(model, w, batch))
        return fl.Graph(fl.update(w, mean, fl.sgd(LEARNING_RATE)), name="ssgd")
