"""What a run of the command line prints in the end: losses and test metrics of the final tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree

from flowml.appraisal import ACCURACY, R2, loss_over, score_name, score_over
from flowml.cli.building import Built
from flowml.errors import FlowmlError
from flowml.execution import Run
from flowml.layout import layout_of


def outcome(built: Built, run: Run) -> dict[str, Any]:
    """Return the numbers of a finished run.

    Returns
    -------
    dict
        ``graph``, ``status``, ``steps``, ``seconds``, and where they are known
        ``training_loss``, ``test_loss``, ``test_accuracy`` (or ``test_R2``), and
        ``metrics``: the last of each evaluation.
    """
    found: dict[str, Any] = {
        "graph": built.graph.name,
        "status": run.status,
        "steps": run.steps,
        "seconds": run.seconds,
    }
    params = trained(built.model, run)
    if params is not None and built.dataset is not None:
        model, data = built.model, built.dataset
        found["training_loss"] = loss_over(model, params, data.train)
        if data.test is not None:
            found["test_loss"] = loss_over(model, params, data.test)
            found[f"test_{score_name(model)}"] = score_over(model, params, data.test)
    else:
        found["last_loss"] = _last_loss(run)
    metrics = {m["name"]: {k: v for k, v in m.items() if k != "name"} for m in run.metrics}
    return found | ({"metrics": metrics} if metrics else {})


def trained(model: Any, run: Run) -> Any:
    """Return the first table for all replicas that has the shape of the model's parameters."""
    if model is None:
        return None
    layout = layout_of(model.init(0))
    for name, value in run.tables.items():
        whole = run.graph.table(name).scope == "global"
        if whole and layout.mismatch(value) is None:
            return value
    return None


def _last_loss(run: Run) -> float | None:
    _, losses = run.history.mean_loss()
    return float(losses[-1]) if len(losses) else None


def shown(found: dict[str, Any]) -> str:
    """Return the numbers as lines."""
    steps, seconds = found["steps"], found["seconds"]
    rate = f", {steps / seconds:,.0f} step/s" if seconds else ""
    lines = [f"{found['status']}: {steps:,} steps in {seconds:.2f} s{rate}"]
    for name in ("training_loss", "last_loss", "test_loss"):
        if found.get(name) is not None:
            lines.append(f"{name.replace('_', ' ')} {found[name]:.10f}")
    for name in (ACCURACY, R2):
        if f"test_{name}" in found:
            lines.append(f"test {name} {found[f'test_{name}']:.4f}")
    if "training_loss" not in found:
        for name, metrics in found.get("metrics", {}).items():
            numbers = (f"{k} {v:.6g}" for k, v in metrics.items() if k != "step")
            lines.append(f"{name} {', '.join(numbers)} after step {metrics['step']}")
    return "\n".join(lines)


def model_words(model: Any) -> str:
    """Return kind and sizes of a model: ``softmax 784 -> 10``."""
    if model is None:
        return ""
    sizes = getattr(model, "sizes", None) or [
        n for n in (model.n_features, getattr(model, "n_classes", 1)) if n
    ]
    return f"{type(model).__name__.lower()} {' -> '.join(map(str, sizes))}"


def parameters_of(run: Run) -> int:
    """Return how many numbers the tables of a run hold, one instance each."""
    return sum(
        int(np.size(leaf))
        for value in run.tables.values()
        for leaf in optree.tree_leaves(value[0] if isinstance(value, list) else value)
    )


def failed(error: FlowmlError) -> dict[str, Any]:
    """Return an error as the object that ``--json`` prints."""
    fields = {k: v for k, v in error.fields.items() if isinstance(v, str | int | float)}
    return {"error": type(error).__name__, "message": str(error), **fields}
