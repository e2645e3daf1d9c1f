"""Bands of rasters: what a config may say of them, and what is known of those of some products."""
