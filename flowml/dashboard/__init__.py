"""The page ``/flowml`` inside Dask's own dashboard, and its JSON twin.

::

    driver                         scheduler                              browser
    card.py   what a run is        plugin.py      takes cards, events,    page.html, page.js
    follow.py its events     --->                 reports of workers      Bokeh charts
                                   runstate.py    what is known of a run
    workers                        snapshot.py    the same as JSON   ---> /flowml/state.json
    reports while looked at  --->  page.py        the same as a page ---> /flowml

The runtime does not know of it: cluster_run.py opens the page and lets the run be followed.
"""
