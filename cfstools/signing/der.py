"""A minimal DER reader and writer for key files: consecutive elements, one level at a time (X.690)."""

from __future__ import annotations

from typing import NamedTuple

INTEGER, OCTET_STRING, NULL, OBJECT, SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
CONTEXT_0 = 0xA0


class Element(NamedTuple):
    """One element: tag byte, content, and all its bytes."""

    tag: int
    content: bytes
    whole: bytes


def elements(data: bytes) -> list[Element]:
    """Split *data* into its elements, whose contents are not parsed. Raises ValueError if it is not DER."""
    found = []
    at = 0
    while at < len(data):
        start = at
        if at + 2 > len(data) or data[at] & 0x1F == 0x1F:
            raise ValueError("not DER")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4 or at + count > len(data):
                raise ValueError("not DER")
            length, at = int.from_bytes(data[at : at + count]), at + count
        if at + length > len(data):
            raise ValueError("not DER")
        found.append(Element(tag, data[at : at + length], data[start : at + length]))
        at += length
    return found


def sequence(data: bytes) -> list[Element]:
    """The elements of *data*, which must be a single SEQUENCE. Raises ValueError."""
    match elements(data):
        case [Element(tag=tag, content=content)] if tag == SEQUENCE:
            return elements(content)
        case _:
            raise ValueError("not a DER sequence")


def number(element: Element) -> int:
    """The value of a non-negative INTEGER. Raises ValueError for anything else."""
    if element.tag != INTEGER or not element.content or element.content[0] & 0x80:
        raise ValueError("not a number")
    return int.from_bytes(element.content)


def made(tag: int, *parts: bytes) -> bytes:
    """Encode an element with *parts* as its content."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def made_number(value: int) -> bytes:
    """Encode the non-negative INTEGER *value*."""
    return made(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))
