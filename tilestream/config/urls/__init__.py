"""Addresses of objects: what opens the store that holds one, and which objects a pattern means."""
