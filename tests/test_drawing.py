"""Drawings say what the graph says: compared by structure, not by pixels."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import flowml as fl
from flowml.compiler.promises import resolve
from flowml.drawing import as_mermaid, as_svg, as_text
from flowml.drawing.placing import placed
from flowml.drawing.words import picture

SVG = "{http://www.w3.org/2000/svg}"
X = np.zeros((8, 3), "float32")
Y = np.array([0, 1] * 4)


def softmax_table(name="w", scope="global"):
    return fl.table(name, fl.models.softmax(3, 2).init(), scope=scope)


def sync_sgd(read=lambda w: w, name="ssgd"):
    w = softmax_table()
    batch = fl.load((X, Y), batch_size=2, name="batch")
    grads = fl.gradient(fl.models.softmax(3, 2), read(w), batch)
    return fl.Graph(fl.update(w, fl.aggregate("mean", grads), fl.sgd(0.1)), name=name)


def elastic():
    local, center = softmax_table("local", "replica"), softmax_table("center")
    batch = fl.load((X, Y), batch_size=2, name="batch")
    moved = fl.update(local, fl.gradient(fl.models.softmax(3, 2), local, batch), fl.sgd(0.1))
    pull = fl.map(lambda a, b: a, moved.every(8), center.async_(), name="elastic")
    return fl.Graph(
        moved,
        fl.update(local, pull, fl.add(-1.0)),
        fl.update(center, pull.async_(), fl.add()),
        name="easgd",
    )


def edges_of(svg, kind):
    return [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == f"edge {kind}"]


def titles(svg):
    return [t.text for t in ET.fromstring(svg).iter(f"{SVG}title")]


def test_svg_draws_each_operator_table_and_edge_once():
    svg = str(sync_sgd().to_svg())
    root = ET.fromstring(svg)
    classes = [g.get("class") for g in root.iter(f"{SVG}g")]
    assert classes.count("operator") == 4
    assert classes.count("table") == 1
    assert classes.count("edge sync") == 4
    assert classes.count("edge loop") == 1
    assert classes.count("edge loose") == 0
    assert "stroke-dasharray" not in svg


def test_svg_dashes_what_is_not_sync():
    svg = elastic().to_svg()
    loose = edges_of(svg, "loose")
    assert [e.find(f"{SVG}title").text for e in loose] == [
        "center -> elastic: async",
        "elastic -> update_center: async",
    ]
    assert all(any(p.get("stroke-dasharray") for p in e.iter(f"{SVG}path")) for e in loose)
    assert len(edges_of(svg, "loop")) == 3


def test_svg_draws_the_promise_that_an_unmarked_edge_takes_from_its_loop():
    graph = sync_sgd(lambda w: w.stale(4)).logical
    assert len(edges_of(as_svg(graph), "loose")) == 1
    svg = as_svg(graph, resolve(graph))
    assert len(edges_of(svg, "loose")) == 3
    assert "gradient -> mean: stale(4) from its loop" in titles(svg)


def test_svg_names_file_and_line_on_hover():
    found = [t for t in titles(sync_sgd().to_svg()) if t.startswith("gradient\n")]
    assert len(found) == 1
    assert "test_drawing.py:" in found[0]
    assert "scope replica" in found[0]


def test_svg_escapes_what_users_call_things():
    graph = sync_sgd(name='<b>"&"</b>')
    assert titles(graph.to_svg())[0] == 'graph <b>"&"</b>'
    w = softmax_table("a<b")
    grads = fl.gradient(fl.models.softmax(3, 2), w, fl.load((X, Y), batch_size=2))
    odd = fl.Graph(fl.update(w, grads, fl.sgd(0.1)))
    assert 'n0[("a#lt;b<br/>' in odd.to_mermaid()
    assert any(title.startswith("a<b\n") for title in titles(odd.to_svg()))


def test_svg_fits_a_page_and_boxes_do_not_overlap():
    graph = elastic()
    drawn = picture(graph.logical)
    widths = {v.name: 150.0 for v in drawn.vertices}
    found = placed(drawn, widths)
    for a in found.centre:
        for b in found.centre:
            if a < b and found.layer[a] == found.layer[b]:
                assert abs(found.centre[a] - found.centre[b]) >= 150
    assert float(ET.fromstring(graph.to_svg()).get("width")) <= 1000


def test_edges_go_down_except_loops():
    drawn = picture(elastic().logical)
    layer = placed(drawn, {v.name: 100.0 for v in drawn.vertices}).layer
    assert all((layer[a.source] < layer[a.target]) != a.loop for a in drawn.arrows)


def test_mermaid_of_a_small_graph():
    assert sync_sgd().to_mermaid() == (
        "flowchart TD\n"
        '  n0[("w<br/>table: W 3 x 2, b 2 float32")]:::global_\n'
        '  n1["batch<br/>load: arrays(8 x 3), batch 2"]:::replica_\n'
        '  n2["gradient<br/>gradient: softmax"]:::replica_\n'
        '  n3["mean<br/>aggregate: mean, by examples"]:::global_\n'
        '  n4["update_w<br/>update: sgd"]:::global_\n'
        "  n0 --> n2\n"
        "  n1 --> n2\n"
        "  n2 --> n3\n"
        "  n3 --> n4\n"
        '  n4 ==>|"next step"| n0\n'
        "  classDef replica_ fill:#eaf1fd,stroke:#4472b8,color:#1b2a41\n"
        "  classDef global_ fill:#fdf1de,stroke:#c17f24,color:#1b2a41\n"
    )


def test_mermaid_dots_what_is_not_sync():
    text = as_mermaid(elastic().logical)
    assert text.count("-.->") == 2
    assert '-.->|"async"|' in text
    assert '-->|"every(8)"|' in text
    assert text.count("==>") == 3


def test_text_lists_reads_writes_and_the_loop():
    lines = str(sync_sgd(lambda w: w.stale(4))).splitlines()
    assert lines[0] == "graph ssgd: 4 operators, 1 table"
    gradient = next(line for line in lines if line.startswith("gradient"))
    assert "w [stale(4)], batch" in gradient
    assert "replica" in gradient
    update = next(line for line in lines if line.startswith("update_w"))
    assert "w ↺" in update
    assert lines[-1] == "↺ w -> gradient -> mean -> update_w -> w in the next step"


def test_text_columns_are_aligned():
    lines = as_text(elastic().logical).splitlines()
    header = lines[2]
    body = lines[3:9]
    for word in ("kind", "scope", "where"):
        at = header.index(word)
        assert all(line[at - 1] == " " and line[at] != " " for line in body)


def test_a_table_that_is_only_written_closes_no_loop():
    w, copy = softmax_table(), softmax_table("copy")
    batch = fl.load((X, Y), batch_size=2)
    mean = fl.aggregate("mean", fl.gradient(fl.models.softmax(3, 2), w, batch))
    graph = fl.Graph(fl.assign(copy, fl.update(w, mean, fl.sgd(0.1))))
    svg = graph.to_svg()
    assert len(edges_of(svg, "loop")) == 1
    assert "assign_copy -> copy: the table after the step" in titles(svg)


def test_a_notebook_gets_all_three_forms():
    graph = sync_sgd()
    bundle = graph._repr_mimebundle_()
    assert sorted(bundle) == ["text/html", "text/plain", "text/vnd.mermaid"]
    assert bundle["text/plain"] == str(graph)
    assert "<svg" in bundle["text/html"]
    assert repr(graph) == "<Graph 'ssgd': 4 operators, 1 table>"


@pytest.mark.parametrize(
    ("function", "name"),
    [(np.add, "add"), (lambda a, b: a, "lambda"), (max, "max")],
    ids=["ufunc", "lambda", "builtin"],
)
def test_functions_are_called_by_their_names(function, name):
    w = softmax_table()
    batch = fl.load((X, Y), batch_size=2)
    value = fl.map(function, w, batch)
    graph = fl.Graph(fl.update(w, fl.aggregate("sum", value), fl.add()))
    assert f"map: {name}" in str(graph)
