"""Slide encoders of other people by name, what they must be given, and their weights."""
