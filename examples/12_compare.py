"""Which promise, how many replicas? Graphs side by side, to the same training loss.

The first row is a plain NumPy loop of the same model and rule in one process: what is not faster
than that is not worth a cluster. ``comparison.report("compare.html")`` draws all of it.
"""

from sklearn.datasets import load_digits

import flowml as fl

READS = {
    "sync": lambda w: w.sync(),
    "stale(3)": lambda w: w.stale(3),
    "async": lambda w: w.async_(),
}


def build(model, source, read):
    """Return SGD whose gradients read the table as ``read`` says."""
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, read(w), fl.load(source, batch_size=64))
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(lr=0.3)))


if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    train, test = (X[:1400], y[:1400]), (X[1400:], y[1400:])
    model = fl.models.softmax(64, 10)

    graphs = {name: build(model, train, read) for name, read in READS.items()}
    comparison = fl.compare(graphs, replicas=[1, 2], epochs=5, test=test, target_loss=0.8)
    print(comparison)

    best = min((row for row in comparison.rows if row.reached), key=lambda r: r.target_examples)
    print(f"fewest examples to the target: {best.name}, {best.target_examples:,.0f}")
