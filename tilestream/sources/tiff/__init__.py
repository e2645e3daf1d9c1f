"""TIFF: which pages are the image, where its pieces lie, and their pixels."""
