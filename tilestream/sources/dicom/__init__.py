"""DICOM whole-slide images by their own frames: which files are the slide, where each frame lies, and its pixels."""
