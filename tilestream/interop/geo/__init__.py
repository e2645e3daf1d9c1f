"""Embeddings of images on a map in the formats of remote sensing: GeoParquet, Cloud Optimized GeoTIFF, GeoZarr, STAC."""
