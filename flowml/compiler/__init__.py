"""From the logical graph to the physical plan and the Dask graph: one pass a file."""
