"""Several GeoTIFFs as one image: which files, where each lies, and their pixels on one grid."""
