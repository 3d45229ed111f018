"""Gradients of losses written in plain NumPy, by autograd.

Nothing else in flowml imports autograd. Two things are added to what it does by itself:

- *Threads.* Replicas may be threads of one process, and autograd counts nested traces in a global
  that they would share. Here a trace has a fixed number below those, and no global is touched.
- *NumPy functions.* autograd intercepts universal functions (``np.exp``, ``@``) of its boxes, but
  ``np.dot``, ``np.where`` or ``np.concatenate`` would fall apart into one box for each number. The
  boxes learn NumPy's ``__array_function__`` protocol below, so that all of them trace whole arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import autograd.numpy as anp
import numpy as np
import optree
from autograd.core import VJPNode, add_outgrads, vspace
from autograd.numpy.numpy_boxes import ArrayBox
from autograd.tracer import getval, isbox, new_box, toposort

from flowml.errors import GraphError
from flowml.types import Array, Function, Pytree

OUTERMOST = -0.5
"""Number of our trace: above -1 (no trace), below 0, 1, ... (an autograd.grad in the loss)."""

COMPOSED = frozenset({"append", "column_stack", "concatenate", "hstack", "stack", "vstack"})
"""Functions of a list of arrays that autograd composes from others that take arrays."""

SPACES = {"numpy.linalg": anp.linalg, "numpy.fft": anp.fft}
"""Where autograd's version of a function lies, other than in ``autograd.numpy``."""

ARRAY = np.empty(0)


@dataclass(frozen=True)
class LossGradient:
    """A loss with its gradient; see `loss_gradient`."""

    loss: Function
    aux: bool = False

    def value_and_grad(self, params: Pytree, *inputs: Any) -> tuple[Any, Pytree]:
        """Return the loss and its gradient with respect to ``params``.

        Parameters
        ----------
        params : pytree of ndarray
            Floats. The loss sees the same pytree with traced arrays.
        *inputs
            Passed on as they are; not differentiated.

        Returns
        -------
        loss : float
            With ``aux``, a pair of it and of what the loss returns beside.
        grads : pytree of ndarray
            Shapes and dtypes of ``params``; zeros for a leaf that the loss does not use.

        Raises
        ------
        GraphError
            If the loss is not a real scalar made from ``params`` by functions that autograd can
            trace. An error of the loss itself is raised as it is.
        """
        leaves, structure = optree.tree_flatten(params)
        arrays = [self._checked(leaf) for leaf in leaves]
        roots = [VJPNode.new_root() for _ in arrays]
        boxes = [new_box(a, OUTERMOST, root) for a, root in zip(arrays, roots, strict=True)]
        try:
            result = self.loss(optree.tree_unflatten(structure, boxes), *inputs)
        except Exception as error:
            self._explain(error, params, inputs)
        end, beside = self._pair(result) if self.aux else (result, None)
        value = self._scalar(end)
        slopes = _backward(end._node, vspace(value).ones())
        grads = [_gradient(slopes.get(r), a) for r, a in zip(roots, arrays, strict=True)]
        loss = float(np.reshape(value, ()))
        return (loss, beside) if self.aux else loss, optree.tree_unflatten(structure, grads)

    @property
    def _where(self) -> str:
        return f"fl.gradient of {getattr(self.loss, '__qualname__', repr(self.loss))}"

    def _checked(self, leaf: Any) -> Array:
        array = np.asarray(leaf)
        if array.dtype.kind != "f":
            raise GraphError(self._where, "every parameter must be a float", str(array.dtype))
        return array

    def _pair(self, result: Any) -> tuple[Any, Any]:
        if not isinstance(result, tuple) or len(result) != 2:
            required = "with aux=True the loss must return (loss, something)"
            raise GraphError(self._where, required, type(result).__name__)
        return result[0], optree.tree_map(getval, result[1])

    def _scalar(self, end: Any) -> Any:
        required = "the loss must be a real scalar made from the parameters"
        if not isbox(end):
            fix = "Return it as it comes from NumPy, without float() or .item()."
            raise GraphError(self._where, required, f"{type(end).__name__} {end!r:.60}", fix)
        value = end._value
        if np.size(value) != 1:
            raise GraphError(self._where, required, f"shape {np.shape(value)}", "Take np.mean.")
        if np.iscomplexobj(value):
            raise GraphError(self._where, required, "a complex number", "Take np.abs or np.real.")
        return value

    def _explain(self, error: Exception, params: Pytree, inputs: tuple[Any, ...]) -> NoReturn:
        # Called without boxes, a loss that is broken by itself raises its own error from here.
        self.loss(params, *inputs)
        raise GraphError(
            self._where,
            "autograd must be able to trace the loss",
            f"{type(error).__name__}: {error}",
            "Use NumPy or autograd.scipy functions of the parameters: no float(), out=, assignment "
            "to items, sparse matrices. Or return (loss, grads) yourself under @fl.value_and_grad.",
        ) from error


def loss_gradient(loss: Callable[..., Any], *, aux: bool = False) -> LossGradient:
    """Differentiate a loss by its parameters.

    Parameters
    ----------
    loss : callable
        ``loss(params, *inputs) -> scalar``, in plain NumPy (or ``autograd.numpy``), pure.
    aux : bool
        The loss returns ``(scalar, something)``.

    Returns
    -------
    LossGradient
        With ``value_and_grad(params, *inputs)``.

    Notes
    -----
    autograd computes some gradients of float32 parameters in float64; they are rounded to the dtype
    of each parameter, since that is what the parameter can hold.

    References
    ----------
    Maclaurin, "Modeling, Inference and Optimization with Composable Differentiable Procedures",
    PhD thesis, 2016, chapter 4 (autograd); reverse accumulation.

    Examples
    --------
    >>> f = loss_gradient(lambda w, x: np.sum((w - x) ** 2))
    >>> f.value_and_grad(np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    (5.0, array([2., 4.]))
    """
    return LossGradient(loss, aux)


@dataclass(frozen=True)
class ValueAndGrad:
    """A function that returns its own gradient; see `value_and_grad`."""

    function: Function

    def __call__(self, params: Pytree, *inputs: Any) -> Any:
        """Call the function."""
        return self.function(params, *inputs)

    def value_and_grad(self, params: Pytree, *inputs: Any) -> Any:
        """Return what the function returns, a pair of loss and gradient.

        Raises
        ------
        GraphError
            If it is not a pair.
        """
        result = self.function(params, *inputs)
        if not isinstance(result, tuple) or len(result) != 2:
            name = getattr(self.function, "__qualname__", repr(self.function))
            got = f"{type(result).__name__} {result!r:.60}"
            raise GraphError(f"@fl.value_and_grad {name}", "must return (loss, gradients)", got)
        return result


def value_and_grad(function: Callable[..., Any]) -> ValueAndGrad:
    """Mark a function that returns ``(loss, grads)`` itself, for `fl.gradient`.

    Examples
    --------
    >>> @value_and_grad
    ... def half_square(w, x):
    ...     return 0.5 * float(np.sum((w - x) ** 2)), w - x
    >>> half_square.value_and_grad(np.array([3.0]), np.array([1.0]))
    (2.0, array([2.]))
    """
    return ValueAndGrad(function)


def _backward(end: Any, slope: Any) -> dict[Any, Any]:
    """Walk the trace back from its end; return the slope at each root (a node without parents)."""
    pending = {end: (slope, False)}
    roots = {}
    for node in toposort(end):
        reached = pending.pop(node)
        if not node.parents:
            roots[node] = reached[0]
        for parent, part in zip(node.parents, node.vjp(reached[0]), strict=False):
            pending[parent] = add_outgrads(pending.get(parent), part)
    return roots


def _gradient(slope: Any, leaf: Array) -> Array:
    if slope is None:
        return np.zeros_like(leaf)
    return np.asarray(slope, leaf.dtype)


def _array_function(
    self: Any, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Call autograd's version of a NumPy function, or NumPy's own on the boxes as objects."""
    name = function.__name__
    traced = getattr(SPACES.get(function.__module__, anp), name, None)
    if traced is not None and (name in COMPOSED or any(map(isbox, args))):
        return traced(*args, **options)
    # Without types, ndarray's own protocol runs the plain implementation.
    return ARRAY.__array_function__(function, (), args, options)


ArrayBox.__array_function__ = _array_function
