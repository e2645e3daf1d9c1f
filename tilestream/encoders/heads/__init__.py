"""A head by its address, with its weights: our own files, folders and repositories of others, ONNX, and factories."""
