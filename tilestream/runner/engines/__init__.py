"""Where tasks run: in this process, or on a cluster of dask that was started here or found."""
