"""What heads that segment leave unit by unit, and how they make it of patch tokens."""
