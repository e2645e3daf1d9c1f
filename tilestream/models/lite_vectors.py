"""What `EfficientNetLite` gives, in words."""

VECTORS = {
    "mean+std": "mean and standard deviation over the maps of blocks 4, 10 and 14, each pair of unit length",
    "tokens": "cells of the map of block 14",
}
"""What each output is."""
