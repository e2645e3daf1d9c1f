"""Heads trained on stored embeddings, and how good they are."""
