"""Slide encoders: from the vectors of all tiles and their places to one vector of the slide."""
