"""Objects of detect heads in the formats of other programs."""
