"""The public surface is this list: an export is a promise, and so is a leaked name."""

from types import ModuleType

import flowml

EXPORTS = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "FlowmlError",
    "Graph",
    "GraphError",
    "KeyedRows",
    "OperatorError",
    "PlanError",
    "Reduction",
    "Rule",
    "Run",
    "StaleRunError",
    "StalledError",
    "WorkerLostError",
    "__version__",
    "adagrad",
    "adam",
    "adamw",
    "add",
    "aggregate",
    "assign",
    "by_leaf",
    "clip_norm",
    "codecs",
    "compare",
    "data",
    "delay_compensated",
    "evaluate",
    "ftrl",
    "gradient",
    "here",
    "init",
    "load",
    "map",
    "models",
    "proximal",
    "rmsprop",
    "schedules",
    "sgd",
    "simulate",
    "sparse_table",
    "table",
    "trimmed_mean",
    "until",
    "update",
    "value_and_grad",
]


def test_all_is_this_list():
    assert EXPORTS == sorted(EXPORTS)
    assert sorted(flowml.__all__) == EXPORTS


def test_no_other_public_name_is_visible():
    """Python puts each imported file of the package beside the names; they are not exports."""
    files = {
        name
        for name, value in vars(flowml).items()
        if isinstance(value, ModuleType) and value.__name__ == f"flowml.{name}"
    }
    visible = {name for name in dir(flowml) if not name.startswith("_")}
    assert visible - files - set(EXPORTS) == set()
    assert set(EXPORTS) - {"__version__"} <= visible


def test_each_export_is_a_thing():
    assert all(getattr(flowml, name) is not None for name in EXPORTS)
