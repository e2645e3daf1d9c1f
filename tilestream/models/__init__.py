"""Torch modules and streaming statistics; no files, no network, no config."""
