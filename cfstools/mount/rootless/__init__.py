"""Mounts without root and without FUSE: the tree in memory, contents from the stores (docs/mount.md)."""

from cfstools.mount.rootless.overlay import overlay_for_users
from cfstools.mount.rootless.survey import fits
from cfstools.mount.rootless.tree import mount_tree

__all__ = ["fits", "mount_tree", "overlay_for_users"]
