"""Objects: where they are looked for, what detectors make of maps, and who keeps them."""
