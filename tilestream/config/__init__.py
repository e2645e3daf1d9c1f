"""What a run is told: schema, types, YAML, the list of slides."""
