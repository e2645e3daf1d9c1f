"""Bytes of images wherever they lie: local files and objects of stores behind one contract."""
