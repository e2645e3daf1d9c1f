"""What a worker does for a head: answers from stored rows, from pixels, and for whole slides."""
