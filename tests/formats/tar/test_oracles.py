"""The tar reader against other writers and readers: tarfile where it is right, GNU tar, bsdtar; and noise."""

from __future__ import annotations

import io
import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfstools.errors import TarError
from cfstools.formats.tar import Member, MemberType, TarReader
from cfstools.streams.limits import TarLimits
from tests.formats.tar.tarbytes import END, GNU, file, gnu_long, header, octal, pax, read

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tar-edge"
TYPES = [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE]
TYPES += [tarfile.FIFOTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SURROGATES = "surrogateescape"

components = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60
).filter(lambda text: text not in {".", ".."} and len(text.encode()) < 200)
raw_components = st.binary(min_size=1, max_size=60).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
names = st.lists(st.one_of(components.map(str.encode), raw_components), min_size=1, max_size=8).map(b"/".join)


@st.composite
def infos(draw: st.DrawFn, form: int) -> tuple[tarfile.TarInfo, bytes]:
    """A member as tarfile writes it, within what the format can say."""
    ustar = form == tarfile.USTAR_FORMAT
    name = draw(names)[: 90 if ustar else 900].rstrip(b"/")
    # The header of a long name has its first 100 bytes. If these end in a slash, tarfile takes a file of the oldest
    # type for a directory; GNU tar and Go look at the whole name, as we do.
    ends_in_slash = len(name) > 100 and name[99:100] == b"/"
    kind = draw(st.sampled_from([kind for kind in TYPES if kind != tarfile.AREGTYPE or not ends_in_slash]))
    info = tarfile.TarInfo(name.decode("utf-8", SURROGATES))
    info.type = kind
    info.mode = draw(st.integers(0, 0o7777))
    top = 0o7777777 if ustar else (1 << 32) - 1
    info.uid, info.gid = draw(st.integers(0, top)), draw(st.integers(0, top))
    if form == tarfile.PAX_FORMAT:
        info.mtime = draw(
            st.one_of(st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 33), 1 << 33).map(lambda n: n / 4))
        )
        value = st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", SURROGATES))
        keys = st.sampled_from(["user.a", "user.ü", "security.capability", "trusted.overlay.opaque"])
        info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in draw(st.dictionaries(keys, value, max_size=3)).items()}
    else:
        info.mtime = draw(st.integers(0 if ustar else -(1 << 40), (1 << 33) - 1))
    if kind in {tarfile.LNKTYPE, tarfile.SYMTYPE}:
        info.linkname = draw(names)[: 90 if ustar else 900].decode("utf-8", SURROGATES)
    if kind in {tarfile.CHRTYPE, tarfile.BLKTYPE}:
        info.devmajor, info.devminor = draw(st.integers(0, 0xFFF)), draw(st.integers(0, 0xFFFFF))
    data = draw(st.binary(max_size=2000)) if info.isreg() else b""
    info.size = len(data)
    return info, data


class Archive(bytes):
    """Is shown by its size: of values that take much text hypothesis makes an error."""

    def __repr__(self) -> str:
        return f"<archive of {len(self)} bytes>"


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    form = draw(st.sampled_from(FORMATS))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors=SURROGATES) as archive:
        for info, data in draw(st.lists(infos(form), max_size=6)):
            archive.addfile(info, io.BytesIO(data))
    return Archive(buffer.getvalue())


KINDS = {member.value: member for member in MemberType} | {
    tarfile.AREGTYPE: MemberType.FILE,
    tarfile.CONTTYPE: MemberType.FILE,
}
Seen = tuple[bytes, MemberType, int, int, int, float, bytes, tuple[int, int], dict[bytes, bytes], int, bytes]


def as_tarfile_sees_it(data: bytes) -> list[Seen]:
    def raw(text: str) -> bytes:
        return text.encode("utf-8", SURROGATES)

    found: list[Seen] = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8", errors=SURROGATES) as archive:
        for info in archive:
            stream = archive.extractfile(info) if info.isreg() else None
            content = stream.read() if stream else b""
            link = raw(info.linkname) if info.islnk() or info.issym() else b""
            device = (info.devmajor, info.devminor) if info.isdev() and not info.isfifo() else (0, 0)
            prefix = "SCHILY.xattr."
            xattrs = {raw(k[len(prefix) :]): raw(v) for k, v in info.pax_headers.items() if k.startswith(prefix)}
            kind = MemberType.FILE if info.issparse() else KINDS[info.type]
            found.append(
                (
                    raw(info.name),
                    kind,
                    info.mode & 0o7777,
                    info.uid,
                    info.gid,
                    info.mtime,
                    link,
                    device,
                    xattrs,
                    info.size,
                    content,
                )
            )
    return found


def as_we_see_it(data: bytes) -> list[Seen]:
    return [
        (
            # tarfile takes trailing slashes away
            member.name.rstrip(b"/"),
            member.type,
            member.mode,
            member.uid,
            member.gid,
            member.mtime_sec + member.mtime_nsec / 1e9,
            member.linkname,
            (member.devmajor, member.devminor),
            dict(member.xattrs),
            member.size,
            content,
        )
        for member, content in read(data)
    ]


@settings(max_examples=300, deadline=None)
@given(archives())
def test_what_tarfile_writes_is_what_we_read(data: bytes) -> None:
    assert as_we_see_it(data) == as_tarfile_sees_it(data)


@settings(max_examples=100, deadline=None)
@given(archives(), st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_it_does_not_matter_in_what_pieces_an_archive_arrives(data: bytes, sizes: list[int]) -> None:
    def endless() -> Iterator[int]:
        while True:
            yield from sizes

    pieces, source = endless(), io.BytesIO(data)
    short = read(b"", source=lambda count: source.read(min(count, next(pieces))))
    whole = read(data)
    assert [content for _, content in short] == [content for _, content in whole]
    assert [fields(member) for member, _ in short] == [fields(member) for member, _ in whole]


def fields(member: Member) -> list[object]:
    return [getattr(member, name) for name in Member.__slots__]


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*.tar")))
@pytest.mark.parametrize("step", [1, 100, 511, 513])
def test_fixtures_do_not_depend_on_pieces(name: str, step: int) -> None:
    data = (FIXTURES / name).read_bytes()
    if step == 1:
        data = data[:4096]

    def outcome(size: int) -> tuple[list[list[object]], str, list[bytes]]:
        source = io.BytesIO(data)
        reader = TarReader(lambda count: source.read(min(count, size)))
        members, contents = [], []
        try:
            for member in reader:
                members.append(fields(member))
                contents.append(b"".join(reader.iter_content(member)))
        except TarError as raised:
            return members, str(raised), contents
        return members, "", contents

    assert outcome(step) == outcome(1 << 20)


def make_tree(root: Path) -> None:
    """A little of everything that an ordinary user can make."""
    deep = root / ("directory-" * 12) / ("another-" * 12)
    deep.mkdir(parents=True)
    (deep / ("file-" * 20)).write_bytes(b"deep")
    (root / "empty").touch()
    (root / "plain").write_bytes(bytes(range(256)) * 20)
    (root / "hard").hardlink_to(root / "plain")
    (root / "link").symlink_to("plain")
    (root / "long-link").symlink_to("target/" * 60)
    os.mkfifo(root / "fifo")
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe-not-utf8"))).write_bytes(b"raw")
    (root / "plain").chmod(0o4751)
    os.utime(root / "plain", ns=(0, 1_700_000_000_123_456_789))
    os.utime(root / "empty", ns=(0, -1_500_000_000))


def write_sparse(path: Path, regions: list[tuple[int, bytes]], size: int) -> bytes:
    expected = bytearray(size)
    with path.open("wb") as stream:
        stream.truncate(size)
        for offset, data in regions:
            stream.seek(offset)
            stream.write(data)
            expected[offset : offset + len(data)] = data
    return bytes(expected)


def tar(root: Path, *options: str, program: str = "tar") -> bytes:
    return subprocess.run([program, "-cf", "-", *options, "-C", str(root), "."], check=True, capture_output=True).stdout


def check_tree(root: Path, data: bytes, *, nanoseconds: bool) -> None:
    """Each member of *data* is as the file system has it."""
    base = os.fsencode(root)
    primary: dict[bytes, bytes] = {}
    found = read(data)
    for member, content in found:
        path = os.path.join(base, member.name)
        status = os.lstat(path)
        if member.type is MemberType.HARDLINK:
            assert os.path.samefile(os.path.join(base, member.linkname), path)
            assert member.linkname in primary
            continue
        primary[member.name] = path
        assert member.mode == stat.S_IMODE(status.st_mode)
        assert (member.uid, member.gid) == (status.st_uid, status.st_gid)
        seconds, fraction = divmod(status.st_mtime_ns, 1_000_000_000)
        assert (member.mtime_sec, member.mtime_nsec) == (seconds, fraction if nanoseconds else 0)
        if member.type is MemberType.FILE:
            assert content == Path(os.fsdecode(path)).read_bytes()
        if member.type is MemberType.SYMLINK:
            assert member.linkname == os.readlink(path)
    listed = {os.path.relpath(member.name, b".") for member, _ in found}
    walked = {b"."}
    for at, directories, files in os.walk(base):
        walked |= {os.path.relpath(os.path.join(at, name), base) for name in directories + files}
    assert listed == walked


gnu_tar = pytest.mark.skipif(
    which("tar") is None
    or b"GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True, check=False).stdout,
    reason="needs GNU tar",
)


@gnu_tar
@pytest.mark.parametrize(
    "options", [["--format=gnu"], ["--format=pax"], ["--format=pax", "--sparse"], ["--format=gnu", "--sparse"]]
)
def test_what_gnu_tar_writes(tmp_path: Path, options: list[str]) -> None:
    make_tree(tmp_path)
    check_tree(tmp_path, tar(tmp_path, *options), nanoseconds="--format=pax" in options)


@gnu_tar
@pytest.mark.parametrize("form", ["v7", "oldgnu", "ustar"])
def test_old_formats_of_gnu_tar(tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"contents")
    (tmp_path / "d" / "l").symlink_to("f")
    check_names = {b"./", b"./d/", b"./d/f", b"./d/l"}
    found = read(tar(tmp_path, f"--format={form}"))
    assert {member.name for member, _ in found} == check_names
    check_whole = {member.name: content for member, content in found}
    assert check_whole[b"./d/f"] == b"contents"


@gnu_tar
@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=["gnu", "oldgnu", "0.0", "0.1", "1.0"],
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: list[str]) -> None:
    noise = random.Random(7)
    page = 4096
    expected = {
        b"./hole": write_sparse(tmp_path / "hole", [], 1 << 20),
        b"./start": write_sparse(tmp_path / "start", [(0, b"start")], 1 << 20),
        b"./end": write_sparse(tmp_path / "end", [((1 << 20) - 3, b"end")], 1 << 20),
        b"./many": write_sparse(
            tmp_path / "many", [(at * 4 * page, noise.randbytes(page)) for at in range(120)], 500 * page + 77
        ),
        b"./plain": write_sparse(tmp_path / "plain", [(0, noise.randbytes(9000))], 9000),
    }
    data = tar(tmp_path, "--sparse", "--hole-detection=raw", *options)
    assert len(data) < 3 << 20
    found = {member.name: (member, content) for member, content in read(data) if member.type is MemberType.FILE}
    assert set(found) == set(expected)
    for name, content in expected.items():
        assert found[name][1] == content
    assert found[b"./many"][0].sparse is not None
    assert as_we_see_it(data) == as_tarfile_sees_it(data)


@gnu_tar
def test_attributes_of_gnu_tar(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    value = bytes(range(256))
    try:
        os.setxattr(path, b"user.binary", value)
        os.setxattr(path, b"user.empty", b"")
    except OSError:
        pytest.skip("the file system keeps no user attributes")
    members = {member.name: member for member, _ in read(tar(tmp_path, "--xattrs", "--format=pax"))}
    assert members[b"./f"].xattrs == {b"user.binary": value, b"user.empty": b""}


@pytest.mark.skipif(which("bsdtar") is None, reason="needs bsdtar")
@pytest.mark.parametrize("options", [["--format=pax"], ["--format=gnutar"], ["--format=pax", "--read-sparse"]])
def test_what_bsdtar_writes(tmp_path: Path, options: list[str]) -> None:
    make_tree(tmp_path)
    # bsdtar 3.6 writes a fraction before the epoch wrongly, and no negative time at all into the old headers.
    os.utime(tmp_path / "empty", ns=(0, 1_500_000_000))
    data = tar(tmp_path, *options, program="bsdtar")
    check_tree(tmp_path, data, nanoseconds="--format=pax" in options)


# Noise


def survive(data: bytes) -> None:
    """Reading ends, with a list or with the one error, and makes at most a bounded amount of contents."""
    reader = TarReader(io.BytesIO(data).read, limits=TarLimits(holes=1 << 22), on_warning=str)
    with suppress(TarError):
        for member in reader:
            assert len(member.name) <= 4096
            size = sum(len(chunk) for chunk in reader.iter_content(member))
            assert size == member.size


SEEDS: list[Callable[[], bytes]] = [
    lambda: file(b"a", b"A") + header(b"b", b"2", link=b"a") + END,
    lambda: (
        pax((b"path", b"long/name"), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.x", b"v")) + file(b"a", b"A" * 600) + END
    ),
    lambda: (
        gnu_long(b"K", b"target" * 30) + gnu_long(b"L", b"name" * 30) + header(b"n", b"2", link=b"t", magic=GNU) + END
    ),
    lambda: (
        pax((b"GNU.sparse.map", b"1,2,3,4"), (b"GNU.sparse.size", b"99"), (b"GNU.sparse.numblocks", b"2"))
        + file(b"a", b"123456")
        + END
    ),
    lambda: (
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99"))
        + file(b"a", b"1\n0\n3\n".ljust(512, b"\0") + b"abc")
        + END
    ),
    lambda: pax((b"comment", b"x"), kind=b"g") + header(b"dev", b"3", major=octal(1, 8)) + END + b"tail",
]
SEEDS += [path.read_bytes for path in sorted(FIXTURES.glob("*.tar"))]


def with_checksums(data: bytearray) -> bytes:
    """Make every block a header whose checksum holds, so that changes get past that check."""
    for at in range(0, len(data) - 511, 512):
        block = data[at : at + 512]
        if any(block):
            total = sum(block[:148]) + 256 + sum(block[156:])
            data[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(data)


@settings(max_examples=500, deadline=2000)
@given(
    st.integers(0, len(SEEDS) - 1),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=12),
    st.integers(0, 8192),
    st.booleans(),
)
def test_changed_archives_raise_nothing_but_their_error(
    seed: int, changes: list[tuple[int, int]], cut: int, summed: bool
) -> None:
    data = bytearray(SEEDS[seed]())
    for at, value in changes:
        data[at % len(data)] = value
    survive((with_checksums(data) if summed else bytes(data))[: cut or None])


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing_but_their_error(data: bytes) -> None:
    survive(data)
    survive(with_checksums(bytearray(data.ljust(2048, b"\0"))))


@settings(max_examples=500, deadline=2000)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.tuples(
                st.sampled_from(
                    [b"path", b"linkpath", b"size", b"mtime", b"uid", b"SCHILY.xattr.a", b"LIBARCHIVE.xattr.%61"]
                    + [
                        b"GNU.sparse." + key
                        for key in (b"map", b"size", b"offset", b"numbytes", b"numblocks", b"major", b"minor")
                    ]
                ),
                st.one_of(st.binary(max_size=20), st.integers(-5, 1 << 70).map(lambda number: b"%d" % number)),
            ).map(lambda pair: pax(pair)[512:].rstrip(b"\0")),
        ),
        max_size=6,
    ),
    st.sampled_from([b"0", b"1", b"2", b"5", b"S", b"\0", b"x"]),
)
def test_noisy_records_raise_nothing_but_their_error(parts: list[bytes], kind: bytes) -> None:
    data = b"".join(parts)
    block = header(b"PaxHeaders/f", b"x", len(data)) + data + bytes(-len(data) % 512)
    survive(block + header(b"f", kind, 4, link=b"t") + b"data".ljust(512, b"\0") + END)
