"""An encoder by name, with its weights."""
