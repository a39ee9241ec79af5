"""Hot loops: Python functions, and C copies of them where the extension was built.

Callers use the functions as attributes of this module (``native.hash_blocks(…)``), so that :func:`use` can exchange
them; ``IMPLEMENTATION`` names the one in use. What a function with a twin in Python does is documented there
(``_pure.py``, ``_known.py``, ``_names.py``).

Some functions exist only in C: they do for whole trees what a room above does, as long as nothing is rare or wrong.
They decline the rest by returning ``None``, and the caller's own code does the work and reports the errors. Without the
extension :func:`decline` is in their place.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cfstools.errors import Unsupported, UsageError
from cfstools.native import _known, _pure

if TYPE_CHECKING:
    from types import ModuleType

    from typing_extensions import Buffer

    Kinds = tuple[type, ...]

IMPLEMENTATION: str = "pure"
# What stat_names() and merge_records() take, without the digest behind each.
KNOWN_RECORD = _known.KNOWN_RECORD
index_records = _known.index_records


def decline(*_: object) -> None:
    """Leave the work to the caller: what a function does that only C has."""


hash_blocks: Callable[[str, Buffer, int, bytes], bytes] = _pure.hash_blocks
digest_files = _pure.digest_files
digest_spans = _pure.digest_spans
digest_range = _pure.digest_range
check_objects = _pure.check_objects
find_objects = _pure.find_objects
list_objects = _pure.list_objects
write_files = _pure.write_files
link_files = _pure.link_files
merge_records = _pure.merge_records
stat_names = _pure.stat_names

# The same in both: C would not be faster.
write_sparse = _pure.write_sparse

# Functions that only C has. *kinds* are the classes of ``cfstools.tree.model.KINDS``.

# (root, kinds, rewrite, metacopy_header, digest_size, version): the bytes of the tree's image and the number of its
# inodes, as formats/composefs/writer.py makes them. *rewrite* gives the sorted and escaped attributes of a mapping.
encode_tree: Callable[
    [object, Kinds, Callable[[Any], list[tuple[bytes, bytes]]], bytes, int, int], tuple[bytes, int] | None
] = decline
# (text, start, kinds, directories, xattrs, no_xattrs, digits, strict): adds the entries that the lines of a dump text
# describe from *start* on, up to the first line that is not ordinary, as formats/dump/parse.py does; the start of that
# line (one more than the length of the text if there is none) and the number of lines added. *directories* are all
# directories by plain path; *xattrs* maps the text of attributes to them.
parse_lines: Callable[[bytes, int, Kinds, dict[bytes, Any], Any, Any, int, bool], tuple[int, int] | None] = decline
# (data, root_nid, xattr_base, build_sec, build_nsec, kinds, no_xattrs, freeze[, leave]): the tree of an image as
# formats/composefs/reader.py reads it; *leave* is called with the entries of each directory once all below it are
# there, and may remove them; with ``None`` for it no tree is made, and its objects come instead, as those of
# ``needed_objects``. Then the number of the digests' algorithm (0: no digests), and the numbers of
# hiding whiteouts, hard links, inodes with a link count other than 1, shared attributes and references to these.
# *freeze* makes a mapping of pairs.
read_tree: Callable[..., tuple[Any, int, int, int, int, int, int] | None] = decline
# (stack, path, firsts, line, xattrs_text, no_xattrs, kinds, enough): at least *enough* bytes of dump text, empty at the
# end, as formats/dump/print.py prints it. The stack has directories: their names and entries still to print, the last
# one first, and how many bytes of *path* are the directory's own path. *path* is scratch space. *firsts* has each inode
# with several names, and the first name once that was printed. *line* is called for what is not ordinary in a dump;
# ``None`` prints a listing instead.
print_entries: Callable[
    [
        list[tuple[list[tuple[bytes, Any]], int]],
        bytearray,
        dict[Any, bytes | None],
        Callable[[bytes, Any, bytes | None], bytes] | None,
        Callable[[Any], bytes],
        Any,
        Kinds,
        int,
    ],
    bytes | None,
] = decline
# (root, kinds, digest_size): digests and sizes of the objects that a tree needs, each once, in the order of
# view/needed.py and as ``check_objects`` takes them.
needed_objects: Callable[[object, Kinds, int], tuple[bytes, bytes] | None] = decline

_WITH_TWIN = (
    "hash_blocks",
    "digest_files",
    "digest_spans",
    "digest_range",
    "check_objects",
    "find_objects",
    "list_objects",
    "write_files",
    "link_files",
    "merge_records",
    "stat_names",
)
_ONLY_NATIVE = ("encode_tree", "parse_lines", "read_tree", "print_entries", "needed_objects")


def use(name: str) -> None:
    """Take the implementation *name*: ``"pure"``, ``"native"``, or ``"auto"`` for the fastest there is.

    Raises ``Unsupported`` when the C copy is asked for but was not built. Not to be called while other threads hash.
    """
    match name:
        case "pure":
            _bind("pure", _pure, _WITH_TWIN)
        case "native" | "auto":
            try:
                extension = importlib.import_module("cfstools.native._native")
                _bind("native", extension, (*_WITH_TWIN, *_ONLY_NATIVE))
            except (ImportError, AttributeError) as error:  # not built, or built from older sources
                if name == "native":
                    raise Unsupported(f"the native functions are not available: {error}") from error
                use("pure")
        case _:
            raise UsageError(f"unknown implementation {name!r}: pure, native or auto")


def _bind(name: str, module: ModuleType, names: tuple[str, ...]) -> None:
    functions = dict.fromkeys(_ONLY_NATIVE, decline) | {function: getattr(module, function) for function in names}
    # The one switch of the process, documented above.
    globals().update(functions, IMPLEMENTATION=name)


use("auto")
