"""What a run is told of the vectors that are made of tiles': of the slide, and of its regions."""
