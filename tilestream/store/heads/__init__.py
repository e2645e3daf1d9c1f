"""What heads leave in a slide's store, by name of the head."""
