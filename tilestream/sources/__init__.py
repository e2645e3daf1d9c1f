"""Pixels and `SlideInfo` from an address."""
