"""The page ``/flowml`` inside Dask's own dashboard, and its JSON twin.

::

    driver                         scheduler                              browser
    card.py   what a run is        plugin.py      takes cards, events,    page.html, page.js
    follow.py its events     --->                 reports of workers      Bokeh charts
                                   runstate.py    what is known of a run
    workers                        snapshot.py    the same as JSON   ---> /flowml/state.json
    reports while looked at  --->  page.py        the same as a page ---> /flowml

Nothing here is imported by what runs a graph: a run is followed, it does not know it.
"""
