"""The mathematics of heads: what turns embeddings and maps into classes, labels and objects."""
