"""The file system in memory: inodes, names and links, without any I/O."""

from cfstools.tree.model import (
    NO_XATTRS,
    Content,
    Device,
    Directory,
    Entry,
    External,
    Fifo,
    HardLink,
    Inode,
    Leaf,
    RegularFile,
    Socket,
    Stamp,
    Symlink,
    Unread,
    Xattrs,
)

__all__ = [
    "NO_XATTRS",
    "Content",
    "Device",
    "Directory",
    "Entry",
    "External",
    "Fifo",
    "HardLink",
    "Inode",
    "Leaf",
    "RegularFile",
    "Socket",
    "Stamp",
    "Symlink",
    "Unread",
    "Xattrs",
]
