"""Images as mounted file systems, by the kernel (docs/mount.md)."""

from cfstools.mount.kernel import mount_image
from cfstools.mount.layers import Layers, Mounting, OverlayVerity
from cfstools.mount.options import HelperOptions, parse_options

__all__ = ["HelperOptions", "Layers", "Mounting", "OverlayVerity", "mount_image", "parse_options"]
