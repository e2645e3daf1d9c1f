"""Torch modules; they know nothing of files."""
