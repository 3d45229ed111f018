"""A cluster of one's own: any Dask cluster will do, and stays as it was.

Here it has two processes on this machine; ``SSHCluster``, ``KubeCluster`` or the address of a
scheduler that runs already stand in its place. Without ``cluster=`` a run takes Dask's current
client; without one it starts processes here and ends them again.
"""

import numpy as np
from dask import array as da
from distributed import Client, LocalCluster

import flowml as fl


def build(rows, labels):
    """Return linear regression on a Dask array, which is never collected in one place."""
    model = fl.models.linear(n_features=rows.shape[1], dtype="float64")
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(fl.data.dask_array(rows, labels), batch_size=250)
    mean = fl.aggregate("mean", fl.gradient(model, w, batch))
    return fl.Graph(fl.update(w, mean, fl.sgd(lr=0.1)), name="on_my_cluster")


if __name__ == "__main__":
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        random = da.random.default_rng(0)
        rows = random.normal(size=(20_000, 5), chunks=(2_000, 5))
        labels = rows @ np.arange(1.0, 6.0)

        graph = build(rows, labels)
        run = graph.run(epochs=10, replicas=2, cluster=client)
        print("weights", run.tables["w"]["w"].round(3))
        for pace in run.timeline.paces():
            print(f"{pace.steps} steps, {pace.busy_seconds * 1e6:.0f} us each: {pace.name}")

        # The cluster is still there, for anything else that Dask does.
        print("mean of the labels", round(float(labels.mean().compute()), 3))
