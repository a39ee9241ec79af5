"""What an image and the object stores it needs look like as read-only files, whatever shows them."""

from cfstools.view.contents import PIECE, Contents
from cfstools.view.nodes import View

__all__ = ["PIECE", "Contents", "View"]
