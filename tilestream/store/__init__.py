"""A slide's output on disk or in a bucket: chunks, tables, ledger, lock, and its one reader."""
