"""What an image looks like where nothing lies on it, and how far each pixel is from that."""
