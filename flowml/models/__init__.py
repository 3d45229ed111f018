"""Models in NumPy with gradients of their own.

Each is a frozen value with ``init(seed)``, ``value_and_grad(params, batch, out=None)``,
``loss(params, batch)``, ``predict(params, X)``, ``score(params, X, y)`` and
``check_batch(batch)``. Parameters are a dict of arrays. A batch is ``(X, y)`` or ``(X, y,
weight)``; the loss is the mean over its rows, or ``sum(weight * loss) / sum(weight)``. X is a
matrix of numbers or a scipy CSR matrix, a row an example. Work is done in the dtype of the
parameters: X of another dtype is cast, batch by batch.
"""

from flowml.models.linear import linear, logistic
from flowml.models.mlp import mlp
from flowml.models.softmax import softmax

__all__ = ["linear", "logistic", "mlp", "softmax"]
