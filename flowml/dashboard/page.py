"""The page ``/flowml`` as a Bokeh document: one for each viewer, all from the same JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from bokeh.events import DocumentReady
from bokeh.models import ColumnDataSource, CustomJS
from bokeh.models.widgets import Select

from flowml.dashboard import curves, lateness, timeline, timeshares, traffic
from flowml.dashboard.contract import PAGE, RunLine, RunSnapshot, State
from flowml.dashboard.looks import Changes
from flowml.runtime._dask_pages import add_page, dress, every, page_template

FOLDER = Path(__file__).parent
CHARTS = (curves, timeshares, lateness, traffic, timeline)
"""Each has ``charts()`` and ``changes(run)``."""
UPDATE_MS = 500
"""Two updates a second, and one reading of the state for each."""
NEWEST_RUN = ("", "newest run")
"""What the selector has first: it follows whichever run is the newest."""
DRAW = "window.flowml.draw(JSON.parse(state.data.json[0]))"
CHARTED = ("losses", "evaluations", "marks")
"""What the charts show and the rest of the page does not need again."""


class Page:
    """What one viewer sees.

    Parameters
    ----------
    plugin : FlowDashboard
    run : str
        The run that was asked for in the address; "" for the newest.

    Notes
    -----
    An update is one message: the browser sets what has changed in the charts and draws the rest
    (page.js).
    """

    def __init__(self, plugin: Any, run: str) -> None:
        self._plugin = plugin
        self._shown: Changes = {}
        self._state = ColumnDataSource({"json": ["null"]}, name="state")
        self._state.js_on_change("data", CustomJS(args={"state": self._state}, code=DRAW))
        self._select = Select(name="run", value=run, width=240)
        self._select.tags = [self._state]  # what no root holds is not kept up to date
        self._select.on_change("value", self._selected)

    def add_to(self, document: Any) -> None:
        """Make this the content of a document."""
        roots = {name: root for part in CHARTS for name, root in part.charts().items()}
        for name, root in roots.items():
            root.name = name
            document.add_root(root)
        document.add_root(self._select)
        document.js_on_event(DocumentReady, CustomJS(args={"state": self._state}, code=DRAW))
        document.on_event(DocumentReady, self._ready)
        document.title = "Dask: flowml"
        self.update()
        every(document, self, UPDATE_MS)

    def _ready(self, event: DocumentReady) -> None:
        """Send all of it again: what changed before the browser was there is lost to it."""
        self._shown = {}
        self.update()

    def _selected(self, attribute: str, before: str, value: str) -> None:
        self.update()

    def update(self) -> None:
        """Show what is known now."""
        state: State = self._plugin.look(self._select.value or None)
        if state["run"] is None:  # an address with a run that is forgotten
            state = self._plugin.look()
        options: list[Any] = [NEWEST_RUN, *((r["id"], run_words(r)) for r in state["runs"])]
        if self._select.options != options:
            self._select.options = options
        run = state["run"]
        found = {} if run is None else changes(run)
        news = {name: now for name, now in found.items() if self._shown.get(name) != now}
        self._shown = found
        message = {"state": without_charts(state), "changes": news}
        self._state.data = {"json": [json.dumps(message)]}


def changes(run: RunSnapshot) -> Changes:
    """Return what shows a run in all charts."""
    found: Changes = {}
    for part in CHARTS:
        found |= part.changes(run)
    return found


def run_words(run: RunLine) -> str:
    """Return what the selector says of a run."""
    return f"{run['graph']} {run['id']} · {run['status']}"


def without_charts(state: State) -> dict[str, Any]:
    """Return the state without what only the charts show."""
    run = state["run"]
    if run is None:
        return {**state}
    replicas = [{k: v for k, v in r.items() if k != "windows"} for r in run["replicas"]]
    left = {k: v for k, v in run.items() if k not in CHARTED}
    return {**state, "run": {**left, "replicas": replicas}}


def document(plugin: str, scheduler: Any, variables: dict[str, Any], found: Any) -> None:
    """Fill the document of a new viewer."""
    asked = found.session_context.request.arguments.get("run", [b""])
    page = Page(scheduler.plugins[plugin], asked[0].decode(errors="replace"))
    page.add_to(found)
    words = {name: (FOLDER / f"page.{name}").read_text() for name in ("css", "js")}
    dress(found, page_template(FOLDER, "page.html"), {**variables, "flowml": words})


def add_to(scheduler: Any, plugin: str) -> bool:
    """Add the page to a scheduler's dashboard; return whether it has one."""
    return add_page(scheduler, PAGE, partial(document, plugin))
