"""One script a claim; each prints its table, or JSON with `--json`."""
