"""How images lie in an OME-Zarr store: scenes, plates and wells, and the OME-XML beside them."""
