"""Hot loops: a pure Python truth and, where it was built, a C copy of it.

Callers use the functions as attributes of this module (``native.hash_blocks(…)``), so that :func:`use` can
exchange them. ``IMPLEMENTATION`` says which one is in use. The C copy is taken when it can be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from cfstools.errors import Unsupported, UsageError
from cfstools.native import _known, _pure

if TYPE_CHECKING:
    from types import ModuleType

    from typing_extensions import Buffer

IMPLEMENTATION: str = "pure"
# What match_stamps() and merge_records() take, without the digest behind each.
KNOWN_RECORD = _known.KNOWN_RECORD

# What each does stands in _pure.py.
hash_blocks: Callable[[str, Buffer, int, bytes], bytes] = _pure.hash_blocks
digest_files = _pure.digest_files
digest_spans = _pure.digest_spans
give_contents = _pure.give_contents
match_stamps = _known.match_stamps
merge_records = _known.merge_records
digest_range = _pure.digest_range
check_objects = _pure.check_objects
write_sparse = _pure.write_sparse
write_files = _pure.write_files
link_files = _pure.link_files
rename_files = _pure.rename_files
list_names = _pure.list_names
stat_names = _pure.stat_names
take_entries = _pure.take_entries
encode_tree = _pure.encode_tree
parse_lines = _pure.parse_lines
read_tree = _pure.read_tree
print_entries = _pure.print_entries
needed_objects = _pure.needed_objects

FUNCTIONS = (
    "hash_blocks",
    "digest_files",
    "digest_spans",
    "give_contents",
    "match_stamps",
    "merge_records",
    "digest_range",
    "check_objects",
    "write_sparse",
    "write_files",
    "link_files",
    "rename_files",
    "list_names",
    "stat_names",
    "take_entries",
    "encode_tree",
    "parse_lines",
    "read_tree",
    "print_entries",
    "needed_objects",
)


def use(name: str) -> None:
    """Take the implementation *name*: ``"pure"``, ``"native"``, or ``"auto"`` for the fastest there is.

    Raises ``Unsupported`` when the C copy is asked for but was not built. Not to be called while other
    threads hash.
    """
    match name:
        case "pure":
            _bind("pure", _pure)
        case "native" | "auto":
            try:
                _bind("native", importlib.import_module("cfstools.native._native"))
            except (ImportError, AttributeError) as error:  # not built, or built from older sources
                if name == "native":
                    raise Unsupported(f"the native functions are not available: {error}") from error
                _bind("pure", _pure)
        case _:
            raise UsageError(f"unknown implementation {name!r}: pure, native or auto")


def _bind(name: str, module: ModuleType) -> None:
    functions = {function: getattr(module, function) for function in FUNCTIONS}
    # The one switch of the process, documented above.
    globals().update(functions, IMPLEMENTATION=name)


use("auto")
