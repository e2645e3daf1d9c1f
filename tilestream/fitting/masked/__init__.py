"""Contexts that learn without labels: hidden tokens are told from their surroundings."""
