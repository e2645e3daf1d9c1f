"""Parts of the report: charts, causes, the history of runs."""
