"""Sample slides: made data with known tissue."""
