"""The names of Dask's dashboard that are not public; importing this needs bokeh, as that does.

Apart from ``_dask.py``, since a scheduler may run without bokeh. The same test watches over both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bokeh.server.tornado import BokehTornado
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from tornado.ioloop import IOLoop

from flowml.runtime._dask import http_prefix

Document = Callable[[Any, dict[str, Any], Any], None]
"""Fills a Bokeh document, given the scheduler and the variables of Dask's page template."""


def add_page(scheduler: Any, path: str, document: Document) -> bool:
    """Add a page to the dashboard of a scheduler, and an entry to its navigation bar.

    Parameters
    ----------
    path : str
        Without slashes; also the words of the entry.

    Returns
    -------
    bool
        False where the scheduler has no dashboard. Once there, a page is not added again.
    """
    application = scheduler.http_application
    if not any(isinstance(a, BokehTornado) for a in application.applications):
        return False
    variables = template_variables(scheduler)
    if path not in variables["pages"]:
        variables["pages"].append(path)
        page = BokehApplication(
            {f"/{path}": document},
            scheduler,
            prefix=http_prefix(scheduler),
            template_variables=variables,
        )
        application.add_application(page)
        page.initialize(IOLoop.current())
        page.start()
    return True


def page_template(folder: Path, name: str) -> Any:
    """Return a page template of ours that may extend those of Dask."""
    assert env.loader is not None
    return Environment(
        loader=ChoiceLoader([FileSystemLoader(str(folder)), env.loader])
    ).get_template(name)


def every(document: Any, part: Any, milliseconds: int) -> None:
    """Call ``part.update`` while a document is open, without keeping it alive."""
    add_periodic_callback(document, part, milliseconds)


def dress(document: Any, template: Any, variables: dict[str, Any]) -> None:
    """Give a document the looks of Dask's pages."""
    document.template = template
    document.template_variables.update(variables)
    document.theme = BOKEH_THEME
