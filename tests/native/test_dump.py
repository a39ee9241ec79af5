"""Dump texts read with the native function give what Python alone gives: the same tree or the same error."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools import native
from cfstools.errors import CfsError
from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import print_dump
from cfstools.tree import NO_XATTRS, Directory
from cfstools.tree.model import KINDS
from cfstools.verity import Algorithm
from tests.strategies import describe, trees

try:
    _native: ModuleType | None = importlib.import_module("cfstools.native._native")
except ImportError:
    _native = None

pytestmark = pytest.mark.skipif(_native is None, reason="the native functions were not built")
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = native.IMPLEMENTATION
    yield
    native.use(before)


def outcome(text: bytes, implementation: str, *, strict: bool, algorithm: Algorithm) -> object:
    native.use(implementation)
    try:
        return describe(parse_dump(text, strict=strict, algorithm=algorithm), primaries=True)
    except CfsError as error:
        return str(error)


def same(text: bytes, *, strict: bool = False, algorithm: Algorithm = Algorithm.SHA256) -> None:
    ours = outcome(text, "native", strict=strict, algorithm=algorithm)
    assert ours == outcome(text, "pure", strict=strict, algorithm=algorithm)


@given(data=st.data(), algorithm=st.sampled_from(Algorithm), strict=st.booleans())
def test_any_tree(data: st.DataObject, algorithm: Algorithm, strict: bool) -> None:
    same(b"".join(print_dump(data.draw(trees(algorithm=algorithm)))), strict=strict, algorithm=algorithm)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.dump")), ids=lambda path: path.stem)
def test_golden(path: Path, strict: bool) -> None:
    same(path.read_bytes(), strict=strict)


FIELDS = st.sampled_from(
    [
        b"", b"-", b"0", b"1", b"4", b"5", b"5001", b"-1", b"+1", b"00000000000000000000001", b"4294967296",
        b"18446744073709551615", b"9999999999999999999", b"18446744073709551616", b"9007199254740993", b"0.0", b"1.5",
        b"-1.0", b".", b"1.", b"9223372036854775808.1", b"100644", b"40755", b"120777", b"20644", b"60644", b"10644",
        b"140777", b"@100644", b"0100644", b"7100644", b"1234567", b"12345678", b"ab" * 32, b"AB" * 32, b"ab" * 33,
        b"zz" * 32, b"ab" * 64, b"a\\x41b", b"data", b"\\n\\t\\\\\\r", b"\\x0", b"\\q", b"/f", b"/d", b"/d/f", b"/f/g",
        b"/d/", b"//d", b"/d//x", b"/.", b"/..", b"/...", b"/d/.x", b"x", b"/" + b"n" * 255, b"/" + b"n" * 256,
        b"p" * 4095, b"p" * 4096, b"user.a=b", b"user.a", b"=b", b"user.a=\\x00", b"a=b c=d", b"a=b a=c", b"\t1", b" ",
        b"\0", b"\n", b"\xff",
    ]
)  # fmt: skip
PLAIN = [b"/f", b"4", b"100644", b"1", b"0", b"0", b"0", b"1.5", b"-", b"data", b"-"]


@settings(max_examples=600)
@given(st.lists(st.tuples(st.integers(0, 11), FIELDS), max_size=4), st.booleans(), st.sampled_from([b"\n", b""]))
def test_any_line(changes: list[tuple[int, bytes]], strict: bool, end: bytes) -> None:
    fields = list(PLAIN)
    for index, field in changes:
        if index < len(fields):
            fields[index] = field
        else:
            fields.append(field)
    root = b"/ 0 40755 2 0 0 0 1.0 - - -\n/d 0 40700 2 0 0 0 1.0 - - - user.x=y\n"
    same(root + b" ".join(fields) + b"\n" + b" ".join([b"/d/last", *PLAIN[1:]]) + end, strict=strict)


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_damaged_texts(seed: int, count: int) -> None:
    source = random.Random(seed)
    text = bytearray((GOLDEN / "dumps" / "084-random-120.dump").read_bytes())
    for _ in range(count):
        at = source.randrange(len(text))
        text[at] = source.choice(b"\0\n /\\-@=.0179afx")
    same(bytes(text))


def test_most_lines_are_read_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"/ 0 40755 2 0 0 0 1.0 - - -"]
    for number in range(100):
        lines.append(b"/d%d 0 40755 2 0 0 0 1.0 - - - user.x=%d" % (number, number % 3))
        lines.append(b"/d%d/f 65 100644 1 0 0 0 2.7 ab/%062d - %064d" % (number, number, number))
        lines.append(b"/d%d/g 3 100644 1 0 0 0 2.7 - a\\x00\\n -" % number)
        lines.append(b"/d%d/l 1 120777 1 0 0 0 2.7 f - -" % number)
    native.use("native")
    found: list[tuple[int, int]] = []
    inner = native.parse_lines

    def counting(*arguments: object) -> tuple[int, int]:
        found.append(inner(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(native, "parse_lines", counting)
    parse_dump(b"\n".join(lines))
    assert found[0] == (0, 0)  # the root
    assert found[1][1] == len(lines) - 1


def test_wrong_arguments_are_refused() -> None:
    assert _native is not None
    root: dict[bytes, Directory] = {}
    for start, digits in ((-1, 64), (1, 64), (0, 0), (0, 63), (0, 130)):
        with pytest.raises(ValueError, match="out of range"):
            _native.parse_lines(b"", start, KINDS, root, {}, NO_XATTRS, digits, False)
    with pytest.raises(ValueError, match="nine kinds"):
        _native.parse_lines(b"", 0, (), root, {}, NO_XATTRS, 64, False)
    with pytest.raises(TypeError, match="a class"):
        _native.parse_lines(b"", 0, (1,) * 9, root, {}, NO_XATTRS, 64, False)
    assert _native.parse_lines(b"", 0, KINDS, root, {}, NO_XATTRS, 64, False) == (0, 0)


def test_interruptions_come_through() -> None:
    class Interrupt(dict[bytes, object]):
        def __missing__(self, _key: bytes) -> object:
            raise KeyboardInterrupt

    assert _native is not None
    with pytest.raises(KeyboardInterrupt):
        _native.parse_lines(
            b"/f 0 100644 1 0 0 0 1.0 - - - a=b",
            0,
            KINDS,
            {b"": Directory(mode=0o40755)},
            Interrupt(),
            None,
            64,
            False,
        )
