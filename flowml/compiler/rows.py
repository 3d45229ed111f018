"""What ``.at(ids)`` means where, and what it cannot mean."""

from __future__ import annotations

from collections.abc import Iterator

from flowml.actions import GLOBAL, Aggregate, Assign, Evaluate, Update
from flowml.errors import FlowmlError, GraphError
from flowml.graph import LogicalGraph, Operator, Port, Table

NO_ROWS = "Leave .at out."


def row_errors(graph: LogicalGraph) -> list[FlowmlError]:
    """Refuse rows that are named where there are none, or in a way that cannot be served."""
    errors: list[FlowmlError] = []
    for operator in graph.operators:
        for number, port in enumerate(operator.inputs):
            errors += _edge_errors(graph, operator, number, port)
        if _writes_rows(operator):
            errors += _write_errors(graph, operator)
        if isinstance(operator.action, Aggregate) and operator.inputs[0].edge.ids is not None:
            errors += _sum_errors(graph, operator, operator.action)
    for table in graph.tables:
        errors += _table_errors(graph, table)
    return errors


def row_written(graph: LogicalGraph, table: str) -> bool:
    """Tell whether some write changes rows of a table."""
    return any(_writes_rows(writer) or _sums_rows(graph, writer) for writer in graph.writers(table))


def _writes_rows(operator: Operator) -> bool:
    return bool(operator.writes) and len(operator.inputs) > 1


def _sums_rows(graph: LogicalGraph, writer: Operator) -> bool:
    port = writer.inputs[0]
    if port.table:
        return False
    source = graph.operator(port.source)
    return isinstance(source.action, Aggregate) and source.inputs[0].edge.ids is not None


def _where(port: Port, operator: Operator) -> str:
    return f"edge {port.source} -> {operator.name} ({operator.site})"


def _edge_errors(
    graph: LogicalGraph, operator: Operator, number: int, port: Port
) -> Iterator[FlowmlError]:
    if port.edge.ids is None:
        return
    where = _where(port, operator)
    named = graph.operator(port.edge.ids[0])
    values = isinstance(operator.action, Aggregate) and number == 0
    if isinstance(operator.action, Evaluate):
        yield GraphError(where, "an evaluation reads a whole table", ".at(ids)", NO_ROWS)
    elif not port.table and not values:
        yield GraphError(
            where,
            "rows are named where a table is read or written, and where values of rows are "
            "combined",
            f"a value of {port.source!r}",
            NO_ROWS,
        )
    elif not values and named.scope != operator.scope:
        yield GraphError(
            where,
            f"the ids must be made by each {operator.scope}, as the reader is",
            f"ids of scope {named.scope}",
            "Make them from what the reader reads.",
        )
    if port.edge.period is not None:
        yield GraphError(
            where, "rows come with the ids of their own step", str(port.edge.period), "Drop .every."
        )


def _write_errors(graph: LogicalGraph, writer: Operator) -> Iterator[FlowmlError]:
    where = f"{writer.kind} {writer.name!r} ({writer.site})"
    values, ids = writer.inputs[0], writer.inputs[1]
    if values.table or graph.operator(values.source).scope != graph.operator(ids.source).scope:
        yield GraphError(
            where,
            "values of rows and their ids must be made by the same operators' scope",
            f"values of {values.source!r} and ids of {ids.source!r}",
            "Make both in each replica.",
        )
    elif graph.operator(values.source).scope != writer.scope != GLOBAL:
        yield GraphError(
            where,
            f"rows of a table of scope {writer.scope} are written by the {writer.scope} itself",
            f"values of scope {graph.operator(values.source).scope}",
            "Use a global table.",
        )
    if isinstance(writer.action, Update):
        yield from _rule_errors(where, writer.action)
    for port in (values, ids):
        for part in (port.edge.period, port.edge.filter):
            if part is not None:
                yield GraphError(
                    where, "rows come with the ids of their own step", str(part), "Drop it."
                )


def _rule_errors(where: str, action: Update) -> Iterator[FlowmlError]:
    rule = action.rule
    if not rule.elementwise or rule.reads:
        what = "reads what the writer had read" if rule.reads else "looks at whole leaves"
        yield GraphError(
            where,
            "rows are changed by rules that change each item by itself",
            f"rule {rule.name}, which {what}",
            "Use fl.sgd, fl.adagrad, fl.adam or another elementwise rule.",
        )


def _sum_errors(
    graph: LogicalGraph, operator: Operator, action: Aggregate
) -> Iterator[FlowmlError]:
    where = f"aggregate {operator.name!r} ({operator.site})"
    if not action.reduction.tree:
        yield GraphError(
            where,
            'rows are combined by "sum" or "mean": who has no row has zeros',
            repr(action.reduction.name),
            "Use one of them.",
        )
    if operator.inputs[0].edge.filter is not None:
        yield GraphError(where, "rows come with the ids of their own step", ".when", "Drop it.")
    if operator.scope != GLOBAL:
        yield GraphError(
            where,
            "rows are combined over all replicas",
            f"within={action.within!r}",
            "Drop within.",
        )
    readers = [o for o in graph.operators if any(_reads(p, operator) for p in o.inputs)]
    wrong = [o for o in readers if not isinstance(o.action, Update | Assign)]
    if wrong or len({o.writes for o in readers}) != 1:
        got = ", ".join(repr(o.name) for o in (wrong or readers)) or "nobody"
        yield GraphError(
            where, "a sum of rows is written to one table and read by nobody else", got, "Write it."
        )
    for reader in readers:
        if isinstance(reader.action, Update):
            yield from _rule_errors(f"update {reader.name!r} ({reader.site})", reader.action)


def _reads(port: Port, operator: Operator) -> bool:
    return not port.table and port.source == operator.name


def _table_errors(graph: LogicalGraph, table: Table) -> Iterator[FlowmlError]:
    where = f"table {table.name!r} ({table.site})"
    by_rows = row_written(graph, table.name)
    if not by_rows and not table.sparse:  # most tables: they need no look at all operators
        return
    writers = graph.writers(table.name)
    if any(not _writes_rows(w) and not _sums_rows(graph, w) for w in writers):
        yield GraphError(
            where,
            "a table is written by rows, or whole",
            ", ".join(f"{w.name!r} ({w.site})" for w in writers),
            "Name the rows in each write, fl.update(t.at(ids), ...), or in none.",
        )
    for operator in graph.operators:
        for port in operator.inputs:
            reads = port.table and port.source == table.name
            if reads and table.sparse and port.edge.ids is None:
                if not isinstance(operator.action, Evaluate):
                    yield GraphError(
                        _where(port, operator),
                        f"rows of sparse table {table.name!r} are read by key",
                        "the whole table",
                        f"Name them: {table.name}.at(ids).",
                    )
            written = [w.name for w in writers if by_rows]
            if not port.table and port.source in written and operator.name not in written:
                if not isinstance(operator.action, Evaluate):
                    yield GraphError(
                        _where(port, operator),
                        "what a write of rows returns is for evaluations and for the graph",
                        f"a value that {operator.name!r} computes with",
                        "Read the rows of the table in the next step.",
                    )
    if by_rows and table.scope != GLOBAL:
        yield from _order_errors(graph, table)


def _order_errors(graph: LogicalGraph, table: Table) -> Iterator[FlowmlError]:
    """Refuse rows of a replica's own table that are read after they were written in the step."""
    later: set[str] = set()
    written = {w.name for w in graph.writers(table.name)}
    for operator in graph.operators:
        ports = [p for p in operator.inputs if not p.table]
        if operator.name in written or any(p.source in later for p in ports):
            later.add(operator.name)
        if operator.name in written:
            continue
        for port in operator.inputs:
            ids = port.edge.ids
            if port.table and port.source == table.name and ids and ids[0] in later:
                yield GraphError(
                    _where(port, operator),
                    "rows are read before they are written in a step",
                    f"ids that come of a write of {table.name!r}",
                    "Make the ids from the batch.",
                )
