"""Records of runs and of new slides, and the state of an output."""
