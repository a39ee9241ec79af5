"""Headers by hand, read by other readers too: whatever they see otherwise is refused here, or a warning says so."""

from __future__ import annotations

import posixpath
import re
import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from shutil import which

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfstools.errors import TarError
from cfstools.formats.tar import MemberType, TarWarning
from tests.formats.tar.tarbytes import END, GNU, USTAR, V7, binary, gnu_long, header, octal, padded, pax, read
from tests.formats.tar.test_oracles import as_tarfile_sees_it

# Name without slashes at the end, type, mode, uid, gid, mtime in seconds, link, size of a file.
Seen = tuple[str, str, int, int, int, int, str, int]
EXAMPLES = 150
ENVIRONMENT = {"TZ": "UTC", "LC_ALL": "C", "PATH": "/usr/bin:/bin"}
KINDS = {kind: kind.name.lower() for kind in MemberType}
LINKS = ("symlink", "hardlink")


def seen(name: str, kind: str, mode: int, uid: int, gid: int, mtime: float, link: str, size: int) -> Seen:  # noqa: PLR0917
    is_file = kind == "file"
    return (
        posixpath.normpath(name) if name else "",
        kind,
        mode & 0o7777,
        uid,
        gid,
        int(mtime // 1),
        link if kind in LINKS else "",
        size if is_file else 0,
    )


def ours(data: bytes) -> list[Seen] | None:
    """What we see; ``None`` where it is refused or a warning is given."""
    warnings: list[TarWarning] = []
    try:
        members = [member for member, _ in read(data, warnings=warnings)]
    except TarError:
        return None
    return (
        None
        if warnings
        else [
            seen(
                one.name.decode(),
                KINDS[one.type],
                one.mode,
                one.uid,
                one.gid,
                one.mtime_sec,
                one.linkname.decode(),
                one.size,
            )
            for one in members
        ]
    )


def python(data: bytes) -> list[Seen] | None:
    try:
        found = as_tarfile_sees_it(data)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError):
        return None
    return [
        seen(name.decode(), KINDS[kind], mode, uid, gid, mtime, link.decode(), size)
        for name, kind, mode, uid, gid, mtime, link, _, _, size, _ in found
    ]


def run(data: bytes, *command: str) -> str | None:
    done = subprocess.run(command, input=data, capture_output=True, env=ENVIRONMENT, check=False)
    return None if done.returncode else done.stdout.decode("latin1")


GNU_LINE = re.compile(
    r'(.)(.{9}) (\d+)/(\d+) +(\d+(?:,\d+)?) (\S+ \d\d:\d\d:\d\d)(?:\.\d+)? +"([^"]*)"(?: (?:->|link to) "([^"]*)")?'
)
GNU_KINDS = {"-": "file", "C": "file", "d": "dir", "l": "symlink", "h": "hardlink", "c": "char", "b": "block"}
GNU_KINDS["p"] = "fifo"


def gnu_mode(letters: str) -> int:
    mode = sum(1 << (8 - at) for at, letter in enumerate(letters) if letter in "rwxst")
    special = (letters[2] in "sS") << 11 | (letters[5] in "sS") << 10 | (letters[8] in "tT") << 9
    return mode | special


def gnu(data: bytes) -> list[Seen] | None:
    text = run(data, "tar", "-tvvf", "-", "--full-time", "--numeric-owner", "--quoting-style=c")
    if text is None:
        return None
    members = []
    for line in text.splitlines():
        found = GNU_LINE.fullmatch(line)
        assert found is not None, line
        kind, letters, uid, gid, size, time, name, link = found.groups()
        seconds = datetime.strptime(time, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
        size = size if size.isdigit() else "0"
        members.append(
            seen(name, GNU_KINDS[kind], gnu_mode(letters), int(uid), int(gid), seconds, link or "", int(size))
        )
    return members


def bsd(data: bytes) -> list[Seen] | None:
    text = run(data, "bsdtar", "-cf", "-", "--format=mtree", "--options=!all,type,mode,uid,gid,time,size,link", "@-")
    if text is None:
        return None
    members = []
    for line in text.splitlines()[1:]:
        name, *words = line.split(" ")
        fields = dict(word.split("=", 1) for word in words)
        kind = {"link": "symlink"}.get(fields["type"], fields["type"])
        members.append(
            seen(
                name,
                kind,
                int(fields["mode"], 8),
                int(fields["uid"]),
                int(fields["gid"]),
                int(fields["time"].split(".")[0]),
                fields.get("link", ""),
                int(fields.get("size", "0")),
            )
        )
    return members


def as_mtree(member: Seen) -> Seen:
    """What of a member an mtree says: of a hard link not even that it is one."""
    name, kind, *rest, link, size = member
    is_link = kind == "hardlink"
    return (name, "file" if is_link else kind, *rest, "" if is_link else link, 0 if is_link else size)  # type: ignore[return-value]


READERS = {"tarfile": python}
if which("tar"):
    READERS["GNU tar"] = gnu
if which("bsdtar"):
    READERS["bsdtar"] = bsd

NAMES = st.sampled_from([b"a", b"b", b"d/a", b"d/", b"./a", b"a/", b"n" * 100])
NUMBERS = st.sampled_from(
    [b"0000007\0", b"     7 \0", b"7\0\0\0\0\0\0\0", binary(7, 8), binary(70000, 8), b"7 \0 \0  \0"]
)
TIMES = st.sampled_from([octal(5, 12), binary(5, 12), binary(-5, 12), b"777777777777", b"5" + bytes(11)])
PREFIXES = st.sampled_from([b"", b"", b"", b"p", octal(5, 12) + octal(6, 12), b"p" * 140])
TAILS = st.sampled_from([b"", b"", b"", b"tar\0"])
MAGICS = st.sampled_from([USTAR, USTAR, GNU, V7, b"ustar\0  "])
TEXTS = st.sampled_from([b"x", b"y/z", b"", b"x/", b"./x", b"x" * 120])
DECIMALS = st.sampled_from([b"3", b"0", b"03", b"", b"-1", b"+3", b"3.0", b" 3", b"3 ", b"0x3", b"1e1", b"4", b"99999"])
# Not -1.5: GNU tar extracts it well but prints it wrong, bsdtar before 3.7 takes it for -0.5.
SECONDS = st.sampled_from([b"1", b"1.5", b"-1", b"", b".5", b"1.", b"1e3", b"+1", b"nan", b"1.1234567891"])
RECORDS = st.one_of(
    st.tuples(st.sampled_from([b"path", b"linkpath", b"GNU.sparse.name"]), TEXTS),
    st.tuples(
        st.sampled_from(
            [
                b"size",
                b"uid",
                b"gid",
                b"SCHILY.realsize",
                b"GNU.sparse.size",
                b"GNU.sparse.realsize",
                b"SCHILY.devmajor",
            ]
        ),
        DECIMALS,
    ),
    st.tuples(st.just(b"mtime"), SECONDS),
    st.tuples(st.sampled_from([b"comment", b"atime", b"uname", b"SCHILY.nlink", b"made.up"]), st.just(b"1")),
    st.tuples(st.just(b"hdrcharset"), st.sampled_from([b"BINARY", b"ISO-IR 10646 2000 UTF-8"])),
    st.tuples(st.just(b"SCHILY.xattr.user.a"), st.just(b"v")),
)


class Archive(bytes):
    """Is shown without its padding."""

    def __repr__(self) -> str:
        return repr(re.sub(rb"\0{3,}", b"..", self))


@st.composite
def members(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([b"0", b"0", b"0", b"\0", b"5", b"2", b"1", b"7", b"6", b"3"]))
    magic = draw(MAGICS)
    data = b"abc" if kind in b"0\0007" else b""
    parts = []
    if draw(st.booleans()):
        parts.append(pax(*draw(st.lists(RECORDS, max_size=3)), kind=draw(st.sampled_from([b"x", b"x", b"x", b"g"]))))
    if draw(st.integers(0, 5)) == 0:
        parts.append(gnu_long(draw(st.sampled_from([b"L", b"K"])), draw(TEXTS) + b"\0"))
    parts.append(
        header(
            draw(NAMES),
            kind,
            len(data),
            mode=draw(st.sampled_from([b"0000644\0", b"0104755\0", b"  644 \0\0", b"0001777\0"])),
            uid=draw(NUMBERS),
            gid=draw(NUMBERS),
            mtime=draw(TIMES),
            link=b"t" if kind in b"12" else b"",
            magic=magic,
            prefix=draw(PREFIXES),
            tail=draw(TAILS),
        )
    )
    return b"".join(parts) + padded(data)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.lists(members(), min_size=1, max_size=2).map(b"".join).map(Archive))
@example(data=header(b"f"))
def test_what_others_see_otherwise_is_refused_or_said(reader: str, data: bytes) -> None:
    found = ours(data + END)
    if found is None:
        return
    others = READERS[reader](data + END)
    if others is None or (reader == "tarfile" and tarfile_errs(data)):
        return
    if reader == "bsdtar":
        # In an mtree names are sorted, and the last of several equal ones is the one.
        found, others = (sorted({one[0]: as_mtree(one) for one in some}.values()) for some in (found, others))
    assert found == others


def tarfile_errs(data: bytes) -> bool:
    """Whether tarfile goes wrong where the writer's own reader does not: with times under GNU magic, and with
    directories of the oldest type, which it knows by the first hundred bytes of their names."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    return any(
        (block[257:265] == GNU and block[345] != 0)
        or (block[156:157] == b"\0" and block[257:262] in {b"ustar", bytes(5)})
        for block in blocks
    )


@pytest.mark.skipif("GNU tar" not in READERS, reason="needs GNU tar")
@pytest.mark.parametrize("time", [b"-1.5", b"-0.25", b"-3.75", b"-1.000000001", b"1.25"])
def test_times_with_a_fraction_are_those_that_gnu_tar_restores(tmp_path: Path, time: bytes) -> None:
    data = pax((b"mtime", time)) + header(b"f") + END
    ((member, _),) = read(data)
    subprocess.run(["tar", "-xf", "-", "-C", str(tmp_path)], input=data, capture_output=True, check=True)
    assert member.mtime_sec * 10**9 + member.mtime_nsec == (tmp_path / "f").stat().st_mtime_ns


def test_the_readers_agree_about_an_ordinary_member() -> None:
    data = header(b"d/f", b"0", 3, mode=b"0000640\0", uid=b"0000007\0", mtime=octal(5, 12)) + padded(b"abc") + END
    expected = [("d/f", "file", 0o640, 7, 0, 5, "", 3)]
    assert ours(data) == expected
    assert [read(data) for read in READERS.values()] == [expected] * len(READERS)
