"""Local SGD (Stich 2019): every replica steps on its own and they agree every eight steps.

Change ``h`` to 1 and it is synchronous SGD; change ``outer`` to
``fl.sgd(0.7, momentum=0.9, nesterov=True)`` and the inner rule to ``fl.adamw`` and it is DiLoCo.
"""

import numpy as np
from sklearn.datasets import load_digits

import flowml as fl


def drift(anchor, moved):
    """Return how far the local parameters have gone from the common ones."""
    return {name: anchor[name] - moved[name] for name in anchor}


if __name__ == "__main__":
    X, y = load_digits(return_X_y=True)
    model, h, outer = fl.models.softmax(64, 10), 8, fl.sgd(1.0)

    anchor = fl.table("anchor", model.init(seed=0))
    local = fl.table("local", model.init(seed=0), scope="replica")
    batch = fl.load((X / 16, y), batch_size=32)
    moved = fl.update(local, fl.gradient(model, local, batch), fl.sgd(0.5))
    mean = fl.aggregate("mean", fl.map(drift, anchor, moved.every(h)), weight="equal")
    agreed = fl.update(anchor, mean, outer)
    graph = fl.Graph(moved, agreed, fl.assign(local, agreed), name="local_sgd")

    run = graph.run(epochs=20, replicas=2)
    waits = run.history["wait_seconds"]
    print(f"accuracy {model.score(run.tables['anchor'], X / 16, y):.3f}")
    print(f"steps in which a replica waited: {np.mean(waits > 0):.0%}")
