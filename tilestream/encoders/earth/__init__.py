"""Encoders of many bands of satellite images."""
