"""Images as mounted file systems, by the kernel (composefs format, section 9)."""

from cfstools.mount.kernel import mount_image
from cfstools.mount.layers import Layers, Mounting, ObjectCheck
from cfstools.mount.options import HelperOptions, parse_options

__all__ = ["HelperOptions", "Layers", "Mounting", "ObjectCheck", "mount_image", "parse_options"]
