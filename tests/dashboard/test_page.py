"""The page without a browser: what it is made of, and what an update sends."""

import json

import pytest
from bokeh.core.validation import check_integrity, process_validation_issues
from bokeh.document import Document
from bokeh.events import DocumentReady

from flowml.dashboard.looks import PARTS
from flowml.dashboard.page import CHARTS, FOLDER, Page, changes
from flowml.dashboard.runs import Runs
from flowml.dashboard.traffic import traffic_words
from flowml.events import Evaluated, Finished, ReplicaDone, RunStarted, WindowDone
from tests.dashboard.stories import WORKERS, opened, report, ssp_graph, sync_graph, tell

ROOTS = {"curve_step", "curve_seconds", "shares", "lateness", "traffic", "timeline", "run"}


class Known:
    """Runs that stand still at second 105, as a plugin that is looked at."""

    def __init__(self, *runs):
        self.runs = Runs()
        self.looks = []
        for run in runs:
            self.runs.add(run)

    def look(self, key=None):
        self.looks.append(key)
        return self.runs.state(key, 105.0, 1e9)


def run_of(graph, key="ab12cd34", windows=2):
    run = opened(graph)
    run.key = key
    tell(run, RunStarted("f00d", graph.name, "resident", 2, 1000), 0.5)
    for number in range(windows):
        for rank in range(2):
            step = 50 * number + 49
            tell(
                run,
                ReplicaDone(rank, WORKERS[rank], step, 50, 0.5, 1.0, 0.4, {1: 50}),
                2.0 + number,
            )
        tell(run, WindowDone(50 * number + 49, 1.0, 50, 0.7), 2.0 + number)
    tell(run, Evaluated(50, "test", {"loss": 0.6, "score": 0.8}), 2.5)
    for at in (3.0, 3.5):
        for worker in range(2):
            spent = {
                ("compute", "gradient"): at,
                ("wait", "w -> gradient"): at,
                ("transfer", ""): at,
            }
            run.report(report(worker, 60, spent), 100.0 + at)
    return run


def page_of(*runs, asked=""):
    plugin, document = Known(*runs), Document()
    page = Page(plugin, asked)
    page.add_to(document)
    return plugin, page, document


def sent(document):
    source = next(m for m in document.models if m.name == "state")
    return json.loads(source.data["json"][0])


def rows(found, name):
    return found["changes"][f"rows of {name}"]["data"]


def test_it_has_a_chart_for_each_part_and_bokeh_has_no_complaint(caplog):
    _, _, document = page_of(run_of(ssp_graph()))
    assert {root.name for root in document.roots} == ROOTS
    with caplog.at_level("WARNING", "bokeh"):
        process_validation_issues(check_integrity(document.models))
    assert caplog.messages == []


def test_every_change_is_of_a_model_that_the_page_has():
    run = run_of(ssp_graph())
    _, _, document = page_of(run)
    for name, properties in changes(run.snapshot(105.0)).items():
        (model,) = [m for m in document.models if m.name == name]
        for property_name, value in properties.items():
            if property_name == "data":
                assert value.keys() == model.data.keys(), name
                assert len({len(column) for column in value.values()}) == 1, name
            else:
                setattr(model, property_name, value)  # Bokeh refuses what cannot be


def test_charts_are_filled_from_the_state():
    found = sent(page_of(run_of(ssp_graph()))[2])
    assert rows(found, "losses")["step"] == [50, 100]
    assert rows(found, "evaluations")["name"] == ["test loss"]
    assert rows(found, "scores")["score"] == ["test score"]
    assert rows(found, "staleness")["x"] == pytest.approx([1.0])
    assert rows(found, "staleness")["top"] == [1.0]
    assert rows(found, "bounds")["name"] == ["w -> gradient: at most 3"]
    assert sum(rows(found, "shares")["right"]) > 0
    assert rows(found, "traffic")["name"] == ["w -> gradient", "gradient -> update_w"]
    assert len(rows(found, "timeline")["left"]) == 2 * 2 * 2
    assert found["state"]["run"]["graph"] == "ssp"
    assert "losses" not in found["state"]["run"]


def test_an_update_sends_what_has_changed():
    run = run_of(ssp_graph())
    _, page, document = page_of(run)
    page.update()
    assert sent(document)["changes"] == {}
    tell(run, WindowDone(149, 1.0, 50, 0.6), 4.0)
    page.update()
    assert "rows of losses" in sent(document)["changes"]
    assert "rows of staleness" not in sent(document)["changes"]


def test_a_browser_that_has_come_gets_all_of_it():
    _, page, document = page_of(run_of(ssp_graph()))
    page.update()
    page._ready(DocumentReady())
    assert "rows of losses" in sent(document)["changes"]


def test_another_run_is_selected():
    old, new = run_of(ssp_graph(), "old"), run_of(sync_graph(), "new")
    plugin, _, document = page_of(old, new)
    assert sent(document)["state"]["run"]["id"] == "new"
    select = next(m for m in document.roots if m.name == "run")
    assert select.options == [
        ("", "newest run"),
        ("new", "sync new · running"),
        ("old", "ssp old · running"),
    ]
    select.value = "old"
    assert sent(document)["state"]["run"]["id"] == "old"
    assert plugin.looks[-1] == "old"


def test_a_run_may_be_asked_for_in_the_address():
    runs = run_of(ssp_graph(), "old"), run_of(sync_graph(), "new")
    assert sent(page_of(*runs, asked="old")[2])["state"]["run"]["id"] == "old"
    assert sent(page_of(*runs, asked="gone")[2])["state"]["run"]["id"] == "new"


def test_a_page_without_runs_is_empty():
    found = sent(page_of()[2])
    assert found["state"]["run"] is None
    assert found["changes"] == {}


@pytest.mark.parametrize("part", CHARTS, ids=lambda part: part.__name__.rpartition(".")[2])
def test_a_run_of_which_nothing_is_known_can_be_drawn(part):
    found = part.changes(opened(ssp_graph()).snapshot(100.5))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_once_nothing_flows_the_bars_are_what_has_flowed():
    run = run_of(ssp_graph())
    flowing = next(e for e in run.snapshot(105.0)["edges"] if e["name"] == "w -> gradient")
    tell(run, Finished("done", 100, 3.0), 4.0)
    ended = next(e for e in run.snapshot(105.0)["edges"] if e["name"] == "w -> gradient")
    assert traffic_words(flowing) == "26.6 kiB/s, 53.1 kiB"
    assert traffic_words(ended) == "53.1 kiB"


def test_the_colours_of_the_charts_are_those_of_the_legend():
    style = (FOLDER / "page.css").read_text()
    for part, colour in PARTS.items():
        assert f"#flowml .{part} {{ --part: {colour}; }}" in style
