"""What a person draws on a slide, and where it is kept: regions with classes, as QuPath's GeoJSON."""
