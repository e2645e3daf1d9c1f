"""The stages of a run that can be started over."""

ALL = "all"

STAGES = (ALL, "tiles", "context", "windows", "pool")
"""What may be started over."""
