"""One graph, several promises: a table that is sync, one that is stale, one that is async.

A network in three parts, each with edges of its own. The output layer is averaged in step, by a
quorum: a step goes on with the first gradient that comes, and a late one joins the next. The hidden
layer may be read four steps late, its bias at any age. ``print(graph)`` shows who promises what,
and the ledger of the run how late each read was, and who moved over a step that went on without it.
"""

import numpy as np
from sklearn.datasets import load_digits

import flowml as fl


def network(params, batch):
    """Return the mean cross entropy of a small network."""
    output, hidden, bias = params
    rows, labels = batch
    scores = np.tanh(rows @ hidden + bias) @ output
    top = scores.max(axis=1, keepdims=True)
    likely = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return -np.mean((likely * np.eye(10)[labels]).sum(axis=1))


def build(source):
    """Return the graph; the read of each table, and what is made of its gradient, say it all."""
    rng = np.random.default_rng(0)
    output = fl.table("output", rng.normal(scale=0.1, size=(32, 10)))
    hidden = fl.table("hidden", rng.normal(scale=0.1, size=(64, 32)))
    bias = fl.table("bias", np.zeros(32))
    batch = fl.load(source, batch_size=32)

    parts = (output.sync(), hidden.stale(4), bias.async_())
    to_output, to_hidden, to_bias = fl.gradient(network, parts, batch)
    first = fl.aggregate("mean", to_output.quorum(1), name="first")
    mean = fl.aggregate("mean", to_hidden, name="mean")  # stale(4) too, from its loop
    return fl.Graph(
        fl.update(output, first, fl.sgd(0.3)),
        fl.update(hidden, mean, fl.sgd(0.3)),
        fl.update(bias, to_bias, fl.sgd(0.1)),  # each gradient by itself, when it comes
        name="mixed",
    )


if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    graph = build((X / 16, y))
    print(graph)

    run = graph.run(epochs=10, replicas=2, record=True)
    params = tuple(run.tables[name] for name in ("output", "hidden", "bias"))
    print(f"\n{run.steps} steps, loss {network(params, (X / 16, y)):.2f}")

    print(run.ledger)  # what was read and delivered, edge by edge, and how late
    print("hidden, stale(4):", run.ledger.histogram("hidden -> gradient"), "{steps late: reads}")

    again = run.replay().tables
    same = all(again[name].tobytes() == run.tables[name].tobytes() for name in again)
    print("replayed from its record:", "the same bytes" if same else "other bytes")
