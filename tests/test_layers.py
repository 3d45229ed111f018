"""Imports go downward, stand at the top of a file, and make no cycle.

A new module is placed in LAYERS first. A folder is one entry: its files may import one another.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    0: "errors types configuration given interrupts mainguard",
    1: "freshness edges codecs rules clipping delay_compensation shrinkage schedules reductions "
    "events keyed_rows initial_rows thinning",
    2: "actions graph plan layout",
    3: "handles arguments operators differentiate data models protocol drawing",
    4: "appraisal collect history ledger runtime simulate timeline",
    5: "compiler dashboard",
    6: "aftermath calibration cluster_run compiled execution moved options progress report testing",
    7: "executors run driver compare",
    8: "cli demo doctor sklearn torch jax preload __init__ __main__",
}
LEVEL = {word: level for level, words in LAYERS.items() for word in words.split()}

# Imports inside one layer, each with its reason.
SIDEWAYS = {
    ("configuration", "errors"),  # a setting that cannot be read is refused like anything else
    ("rules", "schedules"),  # a rate is a number or a schedule
    ("clipping", "rules"),  # clipping composes rules, and their rates
    ("clipping", "schedules"),
    ("delay_compensation", "rules"),  # a rule in a file of its own
    ("delay_compensation", "schedules"),
    ("shrinkage", "rules"),  # which it makes more of
    ("shrinkage", "schedules"),
    ("reductions", "schedules"),  # which holds the checks of numbers that users give
    ("graph", "actions"),  # what an operator does is shared by what is asked and what will run
    ("plan", "actions"),
    ("graph", "layout"),  # and so is the layout of a table in memory
    ("plan", "layout"),
    ("operators", "handles"),  # what a word returns
    ("operators", "arguments"),  # and what it may be given
    ("arguments", "handles"),
    ("arguments", "data"),  # fl.load takes bare arrays and Dask collections
    ("operators", "differentiate"),  # fl.gradient takes plain functions
    ("run", "executors"),  # what a verb of a graph sets off
    ("compare", "run"),  # which it calls
    ("cli", "demo"),  # a command a file, its subject beside
    ("cli", "doctor"),
    ("timeline", "runtime"),  # a timeline is made of what a run leaves
    ("timeline", "history"),
    ("ledger", "runtime"),  # and so is a ledger
    ("simulate", "runtime"),  # what a simulated run computes is what a real one computes
    ("execution", "cluster_run"),  # a replay begins as a run does
    ("execution", "report"),  # the run is its own report's subject
    ("report", "compiled"),  # which shows the plan as it prints
    ("report", "moved"),
    ("report", "aftermath"),  # and the loosest promise of it
    ("execution", "aftermath"),  # and a run that failed says what its driver knows
    ("__main__", "cli"),  # python -m flowml
}
# Downward, and still not allowed: what runs a plan must not know where it came from.
FORBIDDEN = {("runtime", "graph"), ("simulate", "graph"), ("protocol", "graph")}
# The only files that import inside a function, and which package: one that may not be installed, or
# that takes a second which a worker has no use for.
ADAPTERS = {
    "flowml.cli.datasets": {"sklearn"},
    "flowml.data.csv_files": {"pandas"},
    "flowml.data.libsvm_files": {"sklearn"},
    "flowml.dashboard.serving": {"flowml"},  # its page, which needs bokeh
    "flowml.data.parquet_files": {"pyarrow"},
    "flowml.history": {"pandas"},
    "flowml.ledger": {"pandas"},
    "flowml.report.figures": {"bokeh"},
    "flowml.report.page": {"bokeh"},
    "flowml.runtime.prometheus": {"prometheus_client"},
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "flowml").rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text()) for module, path in FILES.items()}


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield what is imported and the line; a file of flowml by its own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                for name in (inner, f"{inner}.__init__", f"{source}.__init__", source):
                    if name in FILES or name == source:
                        yield name, node.lineno
                        break


def entry(module: str) -> str:
    """Return the file or folder directly under flowml/ that a module is, or is in."""
    return f"{module}.__init__".split(".")[1]


OWN = {
    module: [(name, line) for name, line in imports(tree) if name.startswith(("flowml", "."))]
    for module, tree in TREES.items()
}


def test_every_module_is_placed_in_a_layer():
    assert {entry(module) for module in FILES} - set(LEVEL) == set()


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_below_and_never_the_package_root(module):
    here, wrong = entry(module), []
    for target, line in OWN[module]:
        there = entry(target)
        down = LEVEL.get(there, 9) < LEVEL[here] and (here, there) not in FORBIDDEN
        sideways = (here, there) in SIDEWAYS and LEVEL[here] == LEVEL[there]
        inside = here == there and here != "__init__"
        if not (down or sideways or inside):
            wrong.append(f"{FILES[module].relative_to(ROOT)}:{line} imports {target}")
    assert wrong == []


@pytest.mark.parametrize("module", FILES)
def test_imports_stand_at_the_top_of_the_file(module):
    deferred = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {name} inside a function"
        for function in ast.walk(TREES[module])
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for name, line in imports(function)
        if name.partition(".")[0] not in ADAPTERS.get(module, set())
    ]
    assert deferred == []


def test_imports_make_no_cycle():
    graph = nx.DiGraph([(a, b) for a, targets in OWN.items() for b, _ in targets])
    assert [cycle for cycle in nx.strongly_connected_components(graph) if len(cycle) > 1] == []
    assert list(nx.selfloop_edges(graph)) == []
