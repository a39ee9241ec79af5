"""What only the C copy does with whole trees. Here nothing is done, and the caller does it all in its own room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pairs = tuple[tuple[bytes, bytes], ...]


def encode_tree(  # noqa: PLR0917 - called as the C copy is, by position
    root: object,  # noqa: ARG001
    kinds: tuple[type, ...],  # noqa: ARG001
    rewrite: Callable[[Any], list[tuple[bytes, bytes]]],  # noqa: ARG001
    metacopy_header: bytes,  # noqa: ARG001
    digest_size: int,  # noqa: ARG001
    version: int,  # noqa: ARG001
) -> tuple[bytes, int] | None:
    """The bytes of the image of a tree and the number of its inodes, or ``None``: left to the caller.

    Nothing is done here: the truth about images is ``cfstools.formats``, which needs more than this room has. The
    C copy leaves to the caller what is rare or wrong. ``kinds`` are the classes Directory, RegularFile, Symlink,
    Device, Fifo, Socket, HardLink and External; ``rewrite`` gives the sorted and escaped attributes of a mapping.
    """
    return None


def parse_lines(  # noqa: PLR0917 - likewise
    text: bytes,  # noqa: ARG001
    start: int,
    kinds: tuple[type, ...],  # noqa: ARG001
    directories: dict[bytes, Any],  # noqa: ARG001
    xattrs: Any,  # noqa: ARG001
    no_xattrs: Any,  # noqa: ARG001
    digits: int,  # noqa: ARG001
    strict: bool,  # noqa: ARG001, FBT001
) -> tuple[int, int]:
    """Add what lines of a dump *text* from *start* on describe to the tree, up to the first that is not ordinary.

    Returns where that line starts (one more than the length of *text* if there is none) and how many lines were
    taken in. Nothing is done here, as for :func:`encode_tree`; the truth is ``cfstools.formats.dump``. *directories*
    are all directories by plain path, *xattrs* maps the text of attributes to them.
    """
    return start, 0


def read_tree(  # noqa: PLR0917 - likewise
    data: Buffer,  # noqa: ARG001
    root_nid: int,  # noqa: ARG001
    xattr_base: int,  # noqa: ARG001
    build_sec: int,  # noqa: ARG001
    build_nsec: int,  # noqa: ARG001
    kinds: tuple[type, ...],  # noqa: ARG001
    no_xattrs: Any,  # noqa: ARG001
    freeze: Callable[[Pairs], Any],  # noqa: ARG001
) -> tuple[Any, int, int, int, int, int, int] | None:
    """The tree of the image *data*, or ``None``: left to the caller, as it is here always.

    The truth is ``cfstools.formats.composefs_reader``; what is there refused, or only rare, is left to it. With the
    root come the number of the digests' algorithm (0: there are none), and how many there are of hiding devices,
    further names, files with a link count other than 1, different shared attributes and references to these. *freeze*
    makes a mapping of pairs.
    """
    return None


def print_entries(  # noqa: PLR0917 - likewise
    stack: list[tuple[list[tuple[bytes, Any]], int]],  # noqa: ARG001
    path: bytearray,  # noqa: ARG001
    firsts: dict[Any, bytes | None],  # noqa: ARG001
    line: Callable[[bytes, Any, bytes | None], bytes],  # noqa: ARG001
    xattrs_text: Callable[[Any], bytes],  # noqa: ARG001
    no_xattrs: Any,  # noqa: ARG001
    kinds: tuple[type, ...],  # noqa: ARG001
    enough: int,  # noqa: ARG001
) -> bytes:
    """Lines of dump text for what is last on the *stack*, and then for what is in it, and so on.

    The stack has directories that are open: names and entries still to come, the last one first, and how many bytes of
    *path* are the directory's own path. *path* is that of the entry printed last; it belongs to the function.

    Stops with *enough* bytes; nothing at all is done here, where the text is empty. The truth is
    ``cfstools.formats.dump.print``, which *line* is asked for what is not ordinary. *firsts* has each inode with
    several names, and the first of them once that was met.
    """
    return b""


def needed_objects(
    root: object,  # noqa: ARG001
    kinds: tuple[type, ...],  # noqa: ARG001
    digest_size: int,  # noqa: ARG001
) -> tuple[bytes, bytes] | None:
    """The objects a tree needs, each once: digests and sizes as ``check_objects`` takes them, or ``None``.

    The truth is ``cfstools.api.verify_objects``. Trees are left to it in which anything is not at the path made of its
    digest, and directories are met in the same order.
    """
    return None
