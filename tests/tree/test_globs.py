from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfstools.errors import UsageError
from cfstools.tree.globs import MAX_PATTERN, GlobSet
from tests.bounds import bounded

ROWS = [
    # pattern, paths it matches, paths it does not match
    (b"cache", [b"cache", b"var/cache", b"a/b/cache"], [b"cache2", b"cache/x", b"Cache"]),
    (b"/cache", [b"cache"], [b"var/cache"]),
    (b"var/cache", [b"var/cache"], [b"x/var/cache", b"var/cache/x", b"var"]),
    (b"/var/cache", [b"var/cache"], [b"x/var/cache"]),
    (b"*.pyc", [b".pyc", b"a.pyc", b"x/y/a.pyc"], [b"a.pyc.x", b"a.py"]),
    (b"/*.pyc", [b"a.pyc"], [b"x/a.pyc"]),
    (b"usr/*/doc", [b"usr/share/doc", b"usr/.x/doc"], [b"usr/a/b/doc", b"usr/doc"]),
    (b"usr/**/doc", [b"usr/doc", b"usr/share/doc", b"usr/a/b/doc"], [b"usr/xdoc", b"doc", b"x/usr/doc"]),
    (b"**/doc", [b"doc", b"a/doc", b"a/b/doc"], [b"a/xdoc"]),
    (b"doc/**", [b"doc/a", b"doc/a/b"], [b"doc", b"a/doc/b"]),
    (b"/**", [b"a", b"a/b"], []),
    (b"**", [b"a", b"a/b"], []),
    (b"usr/a**z", [b"usr/az", b"usr/abz", b"usr/a/b/z"], [b"usr/a", b"az"]),
    (b"a***b", [b"ab", b"x/acb"], [b"a/b"]),
    (b"?", [b"a", b"x/b", b"\xff", b"\n"], [b"ab", b"\xc3\xa9"]),
    (b"a?b", [b"a.b"], [b"a/b", b"ab"]),
    (b"[a-c]x", [b"ax", b"d/cx"], [b"dx", b"x"]),
    (b"[!a-c]x", [b"dx", b"\xffx"], [b"ax", b"/x"]),
    (b"/d[^a]x", [b"dbx"], [b"d/x", b"dax"]),
    (b"[]]", [b"]"], [b"[", b"a"]),
    (b"[!]]", [b"["], [b"]"]),
    (b"[a-]", [b"a", b"-"], [b"b"]),
    (b"[\\]a]", [b"]", b"a"], [b"\\"]),
    (b"[\\!a]", [b"!", b"a"], [b"b"]),
    (b"/d[+-0]x", [b"d.x", b"d-x"], [b"d/x"]),
    (b"/d[.-\\0]x", [b"d.x", b"d0x"], [b"d/x"]),
    (b"[[]", [b"["], [b"]"]),
    (b"\\*", [b"*"], [b"a", b"\\*"]),
    (b"a\\\\b", [b"a\\b"], [b"ab"]),
    (b"a]", [b"a]"], []),
    (b"a+(b).{2}|$", [b"a+(b).{2}|$"], [b"aab", b"a"]),
    (b"\xff*", [b"\xff", b"\xff\xfe"], [b"\xc3\xbf"]),
    (b"new\nline", [b"new\nline"], [b"newline"]),
    (b"...", [b"..."], [b"abc"]),
]


@pytest.mark.parametrize(("pattern", "path"), [(row[0], path) for row in ROWS for path in row[1]])
def test_matches(pattern: bytes, path: bytes) -> None:
    globs = GlobSet([pattern])
    name = path.rpartition(b"/")[2]
    assert globs.matches(path, name)
    assert globs.matches_directory(path, name)


@pytest.mark.parametrize(("pattern", "path"), [(row[0], path) for row in ROWS for path in row[2]])
def test_does_not_match(pattern: bytes, path: bytes) -> None:
    globs = GlobSet([pattern])
    name = path.rpartition(b"/")[2]
    assert not globs.matches(path, name)
    assert not globs.matches_directory(path, name)


@pytest.mark.parametrize("pattern", [b"cache/", b"var/cache/", b"/var/cache/", b"**/cache/"])
def test_a_trailing_slash_means_directories(pattern: bytes) -> None:
    globs = GlobSet([pattern])
    assert not globs.matches(b"var/cache", b"cache")
    assert globs.matches_directory(b"var/cache", b"cache")
    assert not globs.matches_directory(b"var/cache2", b"cache2")


def test_any_of_several_patterns() -> None:
    globs = GlobSet([b"*.o", b"/tmp", b"dir/", b"/a/b/"])
    assert globs
    assert globs.matches(b"x/y.o", b"y.o")
    assert globs.matches(b"tmp", b"tmp")
    assert not globs.matches(b"x/tmp", b"tmp")
    assert globs.matches_directory(b"x/dir", b"dir")
    assert globs.matches_directory(b"a/b", b"b")
    assert not globs.matches(b"a/b", b"b")
    assert "tmp" in repr(globs)


def test_no_patterns() -> None:
    globs = GlobSet()
    assert not globs
    assert not globs.matches(b"a", b"a")
    assert not globs.matches_directory(b"a", b"a")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (b"", "empty"),
        (b"/", "empty"),
        (b"//", "empty"),
        (b"a//b", "empty"),
        (b"a//", "empty"),
        (b"./a", "'.'"),
        (b"a/../b", "'..'"),
        (b"..", "'..'"),
        (b"a[b", "not closed"),
        (b"a[", "not closed"),
        (b"[]", "not closed"),
        (b"[!]", "not closed"),
        (b"[a-", "not closed"),
        (b"a[b/c]", "not closed"),
        (b"[z-a]", "backwards"),
        (b"[[:alpha:]]", "named classes"),
        (b"a\\", "quotes nothing"),
        (b"[\\", "quotes nothing"),
        (b"a\\/b", "quotes nothing"),
    ],
)
def test_bad_patterns_are_named(pattern: bytes, why: str) -> None:
    with pytest.raises(UsageError, match="bad pattern") as caught:
        GlobSet([b"good", pattern])
    assert why in str(caught.value)


def test_the_length_is_limited() -> None:
    GlobSet([b"a" * MAX_PATTERN])
    with pytest.raises(UsageError, match="8193"):
        GlobSet([b"a" * (MAX_PATTERN + 1)])


@given(st.binary(max_size=20))
def test_any_pattern_is_compiled_or_refused(pattern: bytes) -> None:
    try:
        globs = GlobSet([pattern])
    except UsageError:
        return
    assert globs.matches_directory(b"a/b", b"b") in {True, False}


_letters = st.text("ab*?.", min_size=1, max_size=6)


@given(_letters.filter(lambda p: p not in {".", ".."}), st.text("ab.*", min_size=1, max_size=6))
def test_names_match_as_in_fnmatch(pattern: str, name: str) -> None:
    globs = GlobSet([pattern.encode()])
    assert globs.matches(b"dir/" + name.encode(), name.encode()) == fnmatch.fnmatchcase(name, pattern)


@given(st.binary(min_size=1, max_size=10).filter(lambda n: n not in {b".", b".."} and b"/" not in n))
def test_a_quoted_name_matches_only_itself(name: bytes) -> None:
    quoted = b"".join(b"\\" + bytes([byte]) for byte in name)
    globs = GlobSet([quoted])
    assert globs.matches(name, name)
    assert not globs.matches(name + b"x", name + b"x")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (b"*a" * 100 + b"*b", b"a" * 255),
        (b"*?" * 60 + b"*b", b"a" * 255),
        (b"**/a/" * 50 + b"**/b", b"a/" * 2000 + b"c"),
        (b"x/**/" + b"*a" * 30 + b"b", b"x/" + b"a" * 255),
        (b"**/*a*a*a*b/**/c", (b"a" * 200 + b"/") * 20 + b"d"),
    ],
)
def test_names_that_nearly_match_cost_little(pattern: bytes, path: bytes) -> None:
    globs = GlobSet([pattern])
    with bounded(len(path)):
        for _ in range(20):
            assert not globs.matches(path, path.rpartition(b"/")[2])


pieces = st.lists(st.sampled_from([b"*", b"?", b"a", b"b", b"[ab]", b"/", b"**/", b"/**/"]), min_size=1, max_size=9)


@given(pieces.map(b"".join), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_first_place_that_fits_is_enough(pattern: bytes, names: list[str]) -> None:
    path = "/".join(names).encode()
    try:
        globs = GlobSet([pattern])
    except UsageError:
        return
    body = pattern.removesuffix(b"/")
    anchored, *components = (b"/" in body), *body.removeprefix(b"/").split(b"/")
    if any(b"**" in name and name != b"**" for name in components):
        return
    wanted = fits(components, path.split(b"/")) if anchored else fits(components, [path.rpartition(b"/")[2]])
    assert globs.matches_directory(path, path.rpartition(b"/")[2]) == wanted


def fits(pattern: list[bytes], names: list[bytes]) -> bool:
    """By trying all there is."""
    if not pattern:
        return not names
    if pattern[0] == b"**":
        if len(pattern) == 1:
            return bool(names)
        return any(fits(pattern[1:], names[at:]) for at in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and fits(pattern[1:], names[1:])
