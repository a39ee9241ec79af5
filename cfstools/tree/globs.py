r"""Glob patterns for entries of a tree, used while a directory is walked and on finished trees.

A pattern must match the whole of a path relative to the root, or of a name, byte for byte. Leading dots are not
special.

==============  ==============================================================================================
``*``           any run of bytes without ``/``, even an empty one
``?``           one byte other than ``/`` (a character outside ASCII is several bytes)
``[a-z]``       one byte of the set; ``[!a-z]`` or ``[^a-z]`` one byte outside it; never ``/``; a ``]`` that comes
                first is itself
``\c``          the byte *c* itself, also in a set
``**``          as a whole component: any number of components, even none; as the last one: everything below.
                Elsewhere: any run of bytes, including ``/``
==============  ==============================================================================================

A pattern with a ``/`` at its start or inside is anchored: it is matched against the whole path (a leading ``/``
changes nothing else). Without one it is matched against the name alone, at any depth. A trailing ``/`` restricts
it to directories. The root itself is never matched, and a directory that matches stands for all it contains.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from cfstools.errors import UsageError
from cfstools.text import shown_path

MAX_PATTERN = 8192

_Match = Callable[[bytes], object]
_SLASH = ord("/")
_NOTHING = b"(?!)"
_STAR = rb"[^/]*"
_ANY_PARENTS = rb"(?:[^/]+/)*"


class GlobSet:
    """A set of patterns. Raises :class:`UsageError` if one is malformed."""

    __slots__ = ("_directory_names", "_directory_paths", "_names", "_paths", "patterns")

    def __init__(self, patterns: Iterable[bytes] = ()) -> None:
        self.patterns = tuple(patterns)
        groups: dict[tuple[bool, bool], list[bytes]] = {}
        for pattern in self.patterns:
            anchored, only_directories, expression = _translate(pattern)
            groups.setdefault((anchored, only_directories), []).append(expression)
        self._names = _compile(groups.get((False, False)))
        self._paths = _compile(groups.get((True, False)))
        self._directory_names = _compile(groups.get((False, True)))
        self._directory_paths = _compile(groups.get((True, True)))

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __repr__(self) -> str:
        return f"GlobSet({self.patterns!r})"

    def matches(self, path: bytes, name: bytes) -> bool:
        """Whether a pattern matches any entry with this *name* at *path* (relative, no ``/`` at either end)."""
        return bool(self._names(name) or self._paths(path))

    def matches_directory(self, path: bytes, name: bytes) -> bool:
        """Whether a pattern matches a directory there: as :meth:`matches`, and with a trailing ``/``."""
        return bool(self.matches(path, name) or self._directory_names(name) or self._directory_paths(path))


def _compile(expressions: list[bytes] | None) -> _Match:
    return re.compile(b"|".join(expressions or [_NOTHING]), re.DOTALL).fullmatch


def _translate(pattern: bytes) -> tuple[bool, bool, bytes]:
    """Whether the pattern is anchored, whether it is for directories only, and its regular expression."""
    if len(pattern) > MAX_PATTERN:
        raise UsageError(f"a pattern is {len(pattern)} bytes long, allowed are {MAX_PATTERN}")
    body = pattern.removesuffix(b"/")
    anchored = b"/" in body
    components = body.removeprefix(b"/").split(b"/")
    if not {b"", b".", b".."}.isdisjoint(components):
        raise _bad(pattern, "a component that is empty, '.' or '..' matches nothing")
    *parents, last = components
    if any(b"**" in name and name != b"**" for name in components):
        # A run that crosses slashes inside a name may have to extend beyond its first match, so it needs backtracking.
        parts = [_ANY_PARENTS if name == b"**" else _Component(pattern, name).plain() + b"/" for name in parents]
        parts.append(rb".+" if last == b"**" else _Component(pattern, last).plain())
        return anchored, body != pattern, b"".join(parts)
    runs: list[list[bytes]] = [[]]
    for name in parents:
        if name == b"**":
            runs.append([])
        else:
            runs[-1].append(_Component(pattern, name).translate() + b"/")
    end = rb".+" if last == b"**" else _Component(pattern, last).translate()
    if len(runs) > 1:
        end = _ANY_PARENTS + b"".join(runs.pop()) + end
    first, *middle = (b"".join(run) for run in runs)
    return anchored, body != pattern, first + b"".join(b"(?>(?:[^/]+/)*?%b)" % run for run in middle) + end


def _bad(pattern: bytes, why: str) -> UsageError:
    return UsageError(f"bad pattern '{shown_path(pattern)}': {why}")


class _Component:
    """Translates one component of a pattern."""

    def __init__(self, pattern: bytes, component: bytes) -> None:
        self._pattern = pattern
        self._component = component
        self._at = 0

    def translate(self) -> bytes:
        """The expression: text between two stars matches at its first occurrence, without backtracking.

        That is always right, because it leaves most room for the stars after it. Backtracking over all stars would take
        time polynomial in the length of names, which attackers choose.
        """
        first, *middle = self._pieces()
        if not middle:
            return first
        last = middle.pop()
        return first + b"".join(b"(?>[^/]*?%b)" % piece for piece in middle if piece) + _STAR + last

    def plain(self) -> bytes:
        """The expression with backtracking, which may contain runs that cross slashes."""
        return b"".join(self._tokens())

    def _pieces(self) -> list[bytes]:
        """The expressions before, between and after the stars."""
        pieces = [b""]
        for token in self._tokens():
            if token == _STAR:
                pieces.append(b"")
            else:
                pieces[-1] += token
        return pieces

    def _tokens(self) -> Iterator[bytes]:
        while self._at < len(self._component):
            byte = self._next()
            match byte:
                case b"*":
                    yield self._star()
                case b"?":
                    yield rb"[^/]"
                case b"[":
                    yield self._set()
                case b"\\":
                    yield re.escape(self._quoted())
                case _:
                    yield re.escape(byte)

    def _peek(self) -> bytes:
        return self._component[self._at : self._at + 1]

    def _next(self) -> bytes:
        byte = self._peek()
        self._at += 1
        return byte

    def _quoted(self) -> bytes:
        byte = self._next()
        if not byte:
            raise _bad(self._pattern, "a backslash quotes nothing")
        return byte

    def _star(self) -> bytes:
        expression = _STAR
        while self._peek() == b"*":
            self._at += 1
            expression = rb".*"
        return expression

    def _set(self) -> bytes:
        negated = self._peek() in {b"!", b"^"}
        if negated:
            self._at += 1
        members: set[int] = set()
        first = True
        while first or self._peek() != b"]":
            low = self._member()
            high = low
            if self._peek() == b"-" and self._component[self._at + 1 : self._at + 2] not in {b"]", b""}:
                self._at += 1
                high = self._member()
            if high < low:
                raise _bad(self._pattern, "a range in a set runs backwards")
            members.update(range(low, high + 1))
            first = False
        self._at += 1
        if negated:
            members = set(range(256)) - members
        members.discard(_SLASH)
        return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(members)) + b"]" if members else _NOTHING

    def _member(self) -> int:
        byte = self._next()
        if not byte:
            raise _bad(self._pattern, "a set is not closed by ']' (write '\\[' for the byte itself)")
        if byte == b"[" and self._peek() == b":":
            raise _bad(self._pattern, "named classes are not supported in sets")
        return self._quoted()[0] if byte == b"\\" else byte[0]
