"""A codec of one's own: every number as one of a few levels of the largest, with error feedback.

``check_codec`` is the contract as a function: what it lets pass runs on every edge.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

import flowml as fl
from flowml.testing import check_codec


@dataclass(frozen=True)
class Levels:
    """Numbers as whole parts, from ``-count`` to ``count``, of the largest magnitude."""

    count: int
    feedback: bool = True

    def init(self, shape, dtype, seed):
        """Return the residual: what has not been sent yet."""
        return (np.zeros(shape, dtype),)

    def encode(self, values, state):
        """Return levels and the largest magnitude, and the new residual."""
        total = values + state[0]
        largest = np.max(np.abs(total), initial=0)
        level = np.zeros(total.shape, np.int8)
        if 0 < largest < np.inf:
            level = np.asarray(np.rint(total / largest * self.count), np.int8)
        payload = (level, np.asarray(largest, total.dtype))
        rest = total - self.decode(payload, total.shape, total.dtype)
        # Where a number is not finite there is nothing left to send: NaN would never go away.
        return payload, (np.asarray(np.where(np.isfinite(rest), rest, 0), total.dtype),)

    def decode(self, payload, shape, dtype):
        """Return the numbers that the levels stand for."""
        level, largest = payload
        with np.errstate(invalid="ignore"):  # 0 * inf is NaN, which the receiver is to see
            return np.asarray(level / self.count * largest, dtype).reshape(shape)


if __name__ == "__main__":
    check_codec(Levels(7))

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    model = fl.models.softmax(64, 10)
    w = fl.table("w", model.init(seed=0))
    grads = fl.gradient(model, w, fl.load((X, y), batch_size=32))
    mean = fl.aggregate("mean", grads.compress(Levels(7)))
    graph = fl.Graph(fl.update(w, mean, fl.sgd(lr=0.3)), name="levels")
    run = graph.run(epochs=10, replicas=2)
    print(graph)
    print(f"accuracy {model.score(run.tables['w'], X, y):.3f} with numbers of four bits")
