"""Regions that people drew on a slide: which file holds them, its polygons and classes, and which pixels they cover."""
