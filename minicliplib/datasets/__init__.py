"""Images with captions, images with classes, and how to get, find and read them."""
