"""What an image and the object stores it needs look like as read-only files, whatever shows them."""
