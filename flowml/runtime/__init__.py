"""What runs a plan: executors, transports and the plugins on a Dask cluster."""
