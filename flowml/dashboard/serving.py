"""Adding the JSON and the page to the web server of a Dask scheduler."""

from __future__ import annotations

import json
import logging
from typing import Any

from tornado.web import RequestHandler

from flowml.dashboard.contract import PAGE, TWIN
from flowml.runtime._dask import add_route

logger = logging.getLogger(__name__)


class StateHandler(RequestHandler):
    """Answers ``GET flowml/state.json``; see contract.py."""

    def initialize(self, scheduler: Any, plugin: str) -> None:
        """Take what the route was added with."""
        self.scheduler = scheduler
        self.plugin = plugin

    def get(self) -> None:
        """Write the state; 404 for a run that is not known."""
        found = self.scheduler.plugins.get(self.plugin)
        key = self.get_query_argument("run", None)
        if found is None or (key is not None and found.runs.get(key) is None):
            self.send_error(404)
            return
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(found.look(key), allow_nan=False))


def serve(scheduler: Any, plugin: str) -> bool:
    """Add both to a scheduler's server; return whether it has the page.

    Parameters
    ----------
    plugin : str
        Name of the plugin that is asked at each request: it may be replaced.
    """
    add_route(scheduler, TWIN, StateHandler, {"scheduler": scheduler, "plugin": plugin})
    try:
        from flowml.dashboard.page import add_to

        return add_to(scheduler, plugin)
    except ImportError as error:
        logger.info("no page /%s: %s", PAGE, error)
    except Exception:  # whatever another release of Bokeh or Dask does: no run fails of it
        logger.exception("no page /%s", PAGE)
    return False
