"""Mount a Lightly dataset as a folder of images."""
