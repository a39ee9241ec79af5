"""Composefs images: EROFS with the extended attributes of overlayfs."""
