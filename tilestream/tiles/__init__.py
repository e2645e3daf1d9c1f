"""Which squares of an image are kept, and their pixels in batches."""
