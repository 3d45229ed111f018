"""Synchronous, bounded-stale, asynchronous: one word in the read of a table.

Nothing else changes, and each run says how much its replicas waited for each other. A recorded run
is repeated to the byte, however they took turns.
"""

from distributed import Client
from sklearn.datasets import load_digits

import flowml as fl

PROMISES = {
    "sync": lambda w: w.sync(),
    "stale(4)": lambda w: w.stale(4),
    "async": lambda w: w.async_(),
}


def build(model, source, read):
    """Return the graph; ``read`` says how fresh the parameters of a gradient must be."""
    w = fl.table("w", model.init(seed=0))
    batch = fl.load(source, batch_size=32)
    mean = fl.aggregate("mean", fl.gradient(model, read(w), batch))
    return fl.Graph(fl.update(w, mean, fl.sgd(lr=0.3)), name="one_word")


if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    X, model = X / 16, fl.models.softmax(n_features=64, n_classes=10)
    with Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        for name, read in PROMISES.items():  # each run takes Dask's current client
            run = build(model, (X, y), read).run(epochs=4, replicas=2, record=True)
            waits = run.history["wait_seconds"].sum() / run.history["seconds"].sum()
            score = model.score(run.tables["w"], X, y)
            print(
                f"{name:<9} {run.steps} steps, accuracy {score:.3f}, waits {waits:.0%} of its time"
            )

    again = run.replay()
    same = all(again.tables["w"][k].tobytes() == run.tables["w"][k].tobytes() for k in ("W", "b"))
    print("the asynchronous run, replayed:", "the same bytes" if same else "other bytes")
