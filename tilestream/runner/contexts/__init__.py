"""Whether a fitted context suits what a run gives it."""
