"""Dump texts of a root and a few lines, for tests of the rules a single line has to follow."""

from __future__ import annotations

from typing import TypeVar

import pytest

from cfstools.errors import DumpError
from cfstools.formats.dump.parse import parse_dump
from cfstools.tree import Directory

ROOT = b"/ 4096 40755 2 0 0 0 0.0 - - -\n"

T = TypeVar("T")


def tree(*lines: bytes, strict: bool = False) -> Directory:
    return parse_dump(ROOT + b"".join(line + b"\n" for line in lines), strict=strict)


def only(kind: type[T], line: bytes, *, strict: bool = False) -> T:
    """The one entry that *line* makes below the root."""
    (entry,) = tree(line, strict=strict).entries.values()
    assert isinstance(entry, kind)
    return entry


def refusal(*lines: bytes, strict: bool = False) -> DumpError:
    with pytest.raises(DumpError) as caught:
        tree(*lines, strict=strict)
    return caught.value


def line(**fields: bytes) -> bytes:
    """A line for the empty file /f with some fields replaced."""
    made = {
        "path": b"/f", "size": b"0", "mode": b"100644", "nlink": b"1", "uid": b"0", "gid": b"0", "rdev": b"0",
        "mtime": b"0.0", "payload": b"-", "content": b"-", "digest": b"-",
    }  # fmt: skip
    xattrs = fields.pop("xattrs", None)
    assert fields.keys() <= made.keys()
    text = b" ".join((made | fields).values())
    return text if xattrs is None else text + b" " + xattrs
