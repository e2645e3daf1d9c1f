"""What the command `view` does: a local page with the slide in deep zoom and its embeddings laid over it."""
