"""An own loss in plain NumPy, differentiated by autograd: robust regression with two tables."""

import numpy as np

import flowml as fl


def huber(params, batch):
    """Return the mean Huber loss of a line (slope and offset are two tables)."""
    (slope, offset), (x, y) = params, batch
    error = np.abs(x @ slope + offset - y)
    return np.mean(np.where(error < 1.0, 0.5 * error**2, error - 0.5))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    y = x @ np.array([2.0, -1.0, 0.5]) + 3.0
    y[::20] += 50.0  # outliers

    slope, offset = fl.table("slope", np.zeros(3)), fl.table("offset", np.zeros(()))
    batch = fl.load((x, y), batch_size=100)
    by_slope, by_offset = fl.gradient(huber, (slope, offset), batch)
    graph = fl.Graph(
        fl.update(slope, fl.aggregate("mean", by_slope), fl.adam(lr=0.05)),
        fl.update(offset, fl.aggregate("mean", by_offset), fl.adam(lr=0.05)),
        name="robust",
    )
    run = graph.run(epochs=40, replicas=2)
    print("slope", run.tables["slope"].round(2), "offset", run.tables["offset"].round(2))
