"""What people are told of images: a description of one, a first config for many."""
