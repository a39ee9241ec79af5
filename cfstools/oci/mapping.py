"""What a merged tree becomes before it is written: ``composefs`` and ``plain`` (docs/oci.md, "Mappings")."""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType

from cfstools.tree.copying import take_attributes
from cfstools.tree.model import NO_XATTRS, Directory, Xattrs


class OciMapping(Enum):
    """``composefs``: the canonical tree of an image, one digest for one image; ``plain``: as the layers say."""

    COMPOSEFS = "composefs"
    PLAIN = "plain"


class KeptXattrs(Enum):
    """Which extended attributes stay: ``security.capability`` only, ``user.*`` too, or all."""

    CAPABILITY = "capability"
    USER = "user"
    ALL = "all"


class XattrKeeper:
    """Keeps the extended attributes wanted; equal sets become one object."""

    def __init__(self, kept: KeptXattrs) -> None:
        self._all = kept is KeptXattrs.ALL
        self._user = kept is KeptXattrs.USER
        self._shared: dict[tuple[tuple[bytes, bytes], ...], Xattrs] = {}

    def keep(self, xattrs: Xattrs) -> Xattrs:
        """Those of one inode's attributes that are kept."""
        kept = tuple(sorted(item for item in xattrs.items() if self.keeps(item[0])))
        if not kept:
            return NO_XATTRS
        shared = self._shared.get(kept)
        if shared is None:
            shared = self._shared[kept] = MappingProxyType(dict(kept))
        return shared

    def keeps(self, key: bytes) -> bool:
        """Whether the attribute of that name is kept."""
        return self._all or key == b"security.capability" or (self._user and key.startswith(b"user."))


def apply_canonical(root: Directory) -> list[tuple[bytes, str]]:
    """Map the tree in place as ``composefs`` does; the result is where and why another tool would refuse the image.

    The root gets the attributes of ``/usr``, because builders disagree about the root, and ``/run`` is emptied,
    because build tools leave mount points there. Hard links are to be settled afterwards.
    """
    notes = []
    usr = root.entries.get(b"usr")
    if isinstance(usr, Directory):
        take_attributes(root, usr)
    else:
        why = "no directory" if usr is not None else "missing"
        notes.append((b"usr", f"{why}: the root keeps its own attributes, other tools refuse the image"))
    run = root.entries.get(b"run")
    if isinstance(run, Directory):
        run.entries.clear()
        run.mtime_sec, run.mtime_nsec = root.mtime_sec, root.mtime_nsec
    elif run is not None:
        notes.append((b"run", "no directory: left as it is, other tools refuse the image"))
    return notes
