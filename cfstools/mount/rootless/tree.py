"""A tree and its stores as one mount, without the image as a file system: what users may mount in their namespaces."""

from __future__ import annotations

from cfstools.errors import UsageError
from cfstools.linux import mount as linux
from cfstools.linux.files import close
from cfstools.mount.layers import Layers, Mounting, cannot
from cfstools.mount.rootless.materialise import materialise
from cfstools.mount.rootless.overlay import overlay_of
from cfstools.mount.rootless.survey import Survey, check_fits, survey
from cfstools.tree import Directory

# Room for what the file system keeps beside the contents.
_SPARE = 16 << 20


def mount_tree(root: Directory, layers: Layers, directory_fd: int) -> Mounting:
    """Mount *root* with *layers* on *directory_fd*, in the mount namespace of this process.

    Needs CAP_SYS_ADMIN in the user namespace that the mount namespace belongs to, and a kernel for which
    :func:`~cfstools.mount.rootless.overlay_for_users` holds. The server of a lazy layer is waited for when the files
    are made. After an error nothing is mounted. Raises InputError, ImageError, StoreError, Exhausted, UsageError for
    layers that map owners, Unsupported, and what such a server raises.
    """
    if layers.idmap is not None:
        raise UsageError("only a mount of the image itself maps owners")
    found = survey(root)
    check_fits(found)
    metadata = memory_for(found)
    try:
        left_out = materialise(root, metadata, linked=found.linked)
        overlay, checked = overlay_of(metadata, layers)
    finally:
        close(metadata)
    try:
        linux.move_mount(overlay, directory_fd)
    except OSError as error:
        raise cannot("mount there", error) from error
    finally:
        close(overlay)
    return Mounting(loop=False, objects_checked=checked, left_out=left_out)


def memory_for(found: Survey) -> int:
    """A detached file system in memory with room for what was found; its descriptor."""
    try:
        with linux.FsContext(b"tmpfs") as context:
            context.set_string(b"mode", b"755")
            context.set_string(b"size", b"%d" % (found.pages + _SPARE))
            # The number of inodes is known; a limit would also count the space of attributes.
            context.set_string(b"nr_inodes", b"0")
            return context.mount(linux.MountFlag(0))
    except OSError as error:
        raise cannot("make a file system in memory", error) from error
