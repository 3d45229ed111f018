"""Filters on an edge: what a gradient is made smaller by, and what that saves.

A codec stands on the edge from the gradients to their mean. What it leaves out of one step is added
to the next (error feedback), so that nothing is lost for good.
"""

from sklearn.datasets import load_digits

import flowml as fl

FILTERS = {
    "none": None,
    "float16": fl.codecs.float16(),
    "int8": fl.codecs.int8(),
    "top 5 %": fl.codecs.top_k(0.05),
    "sign": fl.codecs.sign(),
}


def build(model, source, codec):
    """Return synchronous SGD with a filter."""
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load(source, batch_size=64))
    sent = grads if codec is None else grads.compress(codec)
    return fl.Graph(fl.update(w, fl.aggregate("mean", sent), fl.sgd(lr=0.3)), name="filtered")


if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    model = fl.models.softmax(64, 10)
    for name, codec in FILTERS.items():
        graph = build(model, (X, y), codec)
        run = graph.run(epochs=20, replicas=2, executor="serial", record=True)
        score = model.score(run.tables["w"], X, y)
        words = f"{name:<8} accuracy {score:.3f}"
        if codec is not None:  # a run with loose edges or codecs has a record of what it moved
            sent = run.ledger["bytes"][run.ledger["kind"] == "deliver"]
            words += f", {sent.mean():,.0f} of 2,600 bytes a gradient"
        print(words)
