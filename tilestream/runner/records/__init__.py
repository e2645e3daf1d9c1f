"""Records of runs, and the state of an output."""
