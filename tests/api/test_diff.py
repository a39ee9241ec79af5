"""``diff`` of every kind of side, and every reason for digests that differ."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cfstools.api.build import BuildOptions, build
from cfstools.api.diff import DiffOptions, DiffReport, diff
from cfstools.errors import DumpError, ImageError, InputError, UsageError
from cfstools.formats.dump.print import print_dump
from cfstools.formats.erofs.regions import RegionKind, regions
from cfstools.formats.erofs.xattrs import XattrTable
from cfstools.formats.explain import Rule
from cfstools.tree import Device, Directory, Entry, External, Fifo, HardLink, RegularFile, Socket, Symlink
from cfstools.tree.diff import Aspect
from cfstools.tree.walk import iter_inodes
from cfstools.verity import Algorithm, Params, digest_bytes, object_path
from tests.formats.images import directory, external, find, patch, regular, sample_tree, write_image

Make = Callable[[], Directory]


def image_file(place: Path, name: str, root: Directory | bytes, **options: object) -> bytes:
    path = place / name
    path.write_bytes(root if isinstance(root, bytes) else write_image(root, **options))  # type: ignore[arg-type]
    return os.fsencode(path)


def dump_file(place: Path, name: str, root: Directory) -> bytes:
    path = place / name
    path.write_bytes(b"".join(print_dump(root)))
    return os.fsencode(path)


def compare(place: Path, one: Directory | bytes, other: Directory | bytes) -> DiffReport:
    return diff(image_file(place, "a", one), image_file(place, "b", other))


def why(report: DiffReport) -> dict[Rule, str]:
    assert not report.same
    assert report.a.digest != report.b.digest
    reasons = {reason.rule: reason.what for reason in report.reasons}
    assert len(reasons) == len(report.reasons)
    return reasons


def paths(report: DiffReport) -> list[str]:
    return [change.path for change in report.changes]


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("host\n")
    (root / "large").write_bytes(b"L" * 9000)
    (root / "etc/again").hardlink_to(root / "large")
    return root


def built(rootfs: Path, name: str, **options: object) -> bytes:
    path = os.fsencode(rootfs.parent / name)
    build(os.fsencode(rootfs), path, options=BuildOptions(**options))  # type: ignore[arg-type]
    return path


def test_an_image_is_the_same_as_what_it_was_made_of(rootfs: Path) -> None:
    source = os.fsencode(rootfs)
    for algorithm in Algorithm:
        image = built(rootfs, "image", algorithm=algorithm)
        for report in (diff(image, source), diff(source, image)):
            assert report.same
            assert {report.a.kind, report.b.kind} == {"image", "directory"}
            assert report.a.digest == report.b.digest
            assert not report.changes
            assert report.reasons == ()
            assert (report.objects_shared, report.objects_to_fetch, report.image_to_fetch) == (1, 0, 0)


def test_what_a_client_has_to_fetch(rootfs: Path) -> None:
    before = built(rootfs, "before")
    (rootfs / "new").write_bytes(b"N" * 10000)
    (rootfs / "again").write_bytes(b"N" * 10000)
    (rootfs / "small").write_bytes(b"inline")
    report = diff(before, os.fsencode(rootfs), options=DiffOptions(ignore=frozenset({Aspect.MTIME})))
    assert paths(report) == ["/again", "/new", "/small"]
    assert (report.added, report.removed, report.changed) == (3, 0, 0)
    assert (report.objects_shared, report.objects_to_fetch, report.bytes_to_fetch) == (1, 1, 10000)
    assert report.image_to_fetch == report.b.image_size > 0
    assert report.ignored == ("mtime",)
    assert report.reasons == ()
    assert why(diff(before, os.fsencode(rootfs))) == {}  # the changes say it


def test_every_aspect_has_its_values(tmp_path: Path) -> None:
    def tree(**fields: Entry) -> Directory:
        return directory({name.encode(): entry for name, entry in fields.items()})

    shared = regular(b"", nlink=2)
    old = tree(
        content=regular(b"12345"),
        digest=external(digest=None),
        dev=Device(mode=stat.S_IFBLK, rdev=0x801, size=3),
        fifo=Fifo(mode=stat.S_IFIFO, size=1),
        gone=regular(b"", nlink=2),
        links_a=shared,
        links_b=HardLink(shared),
        meta=regular(b"", uid=1, gid=2, mtime_sec=-1, mtime_nsec=5),
        nlink=regular(b"", nlink=1),
        payload=external(payload=None),
        sock=Socket(mode=stat.S_IFSOCK, size=1),
        target=Symlink(mode=stat.S_IFLNK, target=b"a b"),
        type=regular(b""),
        xattr=regular(b"", xattrs={b"user.gone": b"\0", b"user.new\n": b"1"}),
    )
    linked = regular(b"x")
    new = tree(
        content=external(size=80),
        digest=external(),
        dev=Device(mode=stat.S_IFBLK, rdev=0x802),
        fifo=Fifo(mode=stat.S_IFIFO, size=2),
        links_a=regular(b"", nlink=1),
        links_b=regular(b"", nlink=1),
        meta=regular(b"", uid=3, gid=2, mtime_sec=0),
        nlink=regular(b"", nlink=2),
        payload=external(payload=b"x y"),
        sock=Socket(mode=stat.S_IFSOCK, size=2),
        target=Symlink(mode=stat.S_IFLNK, target=b"b"),
        type=Symlink(mode=stat.S_IFLNK | 0o644, target=b"b"),
        xattr=regular(b"", xattrs={b"user.new\n": b"2", b"user.come": b"="}),
        z1=linked,
        z2=HardLink(linked),
    )
    report = diff(dump_file(tmp_path, "a", old), dump_file(tmp_path, "b", new))
    found = {
        change.path: [(item.aspect, item.key or "", item.before, item.after) for item in change.differences]
        for change in report.changes
    }
    digest = bytes(range(32)).hex()
    assert found == {
        "/content": [("mode", "", "0644", "0600"), ("xattrs", "security.selinux", None, found["/content"][1][3]),
                     ("content", "", "inline", digest)],
        "/dev": [("rdev", "", "8,1 of size 3", "8,2")],
        "/digest": [("digest", "", None, digest)],
        "/fifo": [("size", "", "1", "2")],
        "/gone": [],
        "/links_b": [("links", "", "a link to /links_a", "an inode of its own")],
        "/meta": [("owner", "", "1:2", "3:2"), ("mtime", "", "-1.000000005", "0.000000000")],
        "/nlink": [("links", "", "link count 1 for 1 name", "link count 2 for 1 name")],
        "/payload": [("payload", "", None, "x\\x20y")],
        "/sock": [("size", "", "1", "2")],
        "/target": [("target", "", "a\\x20b", "b")],
        "/type": [("type", "", "file", "symlink")],
        "/xattr": [
            ("xattrs", "user.come", None, "="),
            ("xattrs", "user.gone", "\\x00", None),
            ("xattrs", "user.new\\n", "1", "2"),
        ],
        "/z1": [],
        "/z2": [],
    }  # fmt: skip
    changes = {change.path: change for change in report.changes}
    content = changes["/content"].differences[-1]
    assert (content.size_before, content.size_after) == (5, 80)
    assert (changes["/gone"].change, changes["/z1"].change, changes["/z1"].link_to) == ("removed", "added", None)
    assert (changes["/z2"].type, changes["/z2"].link_to) == ("file", "/z1")
    assert report.aspects["xattrs"] == 2
    assert (report.added, report.removed, report.changed) == (2, 1, len(found) - 3)
    assert report.reasons == ()
    document = report.to_dict()
    assert document["schema"] == 1
    assert isinstance(document["changes"], list)


def test_version(tmp_path: Path) -> None:
    root = sample_tree()  # it has a whiteout, so that versions differ in more than the header
    old = image_file(tmp_path, "a", root, max_version=0)
    new = image_file(tmp_path, "b", root, min_version=1)
    report = diff(old, new)
    assert why(report) == {Rule.VERSION: "A is version 0, B is version 1"}
    assert not report.changes
    assert (report.a.format, report.b.format) == ("v0-sha256-12", "v1-sha256-12")
    assert diff(old, new, options=DiffOptions(ignore_format=True)).same


def test_version_of_what_is_no_image(tmp_path: Path) -> None:
    root = directory({b"d": directory({b"gone": Device(mode=stat.S_IFCHR | 0o600, rdev=0)})})
    old = image_file(tmp_path, "a", root, max_version=0)
    assert why(diff(dump_file(tmp_path, "dump", root), old)) == {Rule.VERSION: "A would be version 1, B is version 0"}


def test_algorithm(rootfs: Path) -> None:
    one, other = built(rootfs, "one"), built(rootfs, "other", algorithm=Algorithm.SHA512)
    report = diff(one, other)
    said = "A has sha256, B has sha512; of 1 file only the sizes could be compared"
    assert why(report) == {Rule.ALGORITHM: said}
    assert (report.contents_incomparable, report.objects_shared, report.objects_to_fetch) == (1, 0, 1)
    forced = diff(one, os.fsencode(rootfs), options=DiffOptions(algorithm=Algorithm.SHA512))
    assert why(forced) == {Rule.ALGORITHM: said}


def test_an_image_without_objects_is_of_any_algorithm(tmp_path: Path) -> None:
    root = directory({b"f": regular(b"f")})
    dump = dump_file(tmp_path, "dump", root)
    for algorithm in Algorithm:
        report = diff(image_file(tmp_path, "a", root), dump, options=DiffOptions(algorithm=algorithm))
        assert report.same
        assert report.a.digest == digest_bytes(write_image(root), Params(algorithm=algorithm)).hex()


def test_nanoseconds(tmp_path: Path) -> None:
    new = sample_tree()
    for inode in iter_inodes(new):
        inode.mtime_nsec = 7
    report = compare(tmp_path, sample_tree(), new)
    (what,) = why(report).values()
    assert what == f"{report.changed} mtimes differ only there: / has .000000000 in A, .000000007 in B"
    assert report.aspects == {"mtime": report.changed}
    new.mtime_sec = 1  # a difference in earnest explains itself
    assert why(compare(tmp_path, sample_tree(), new)) == {}


def test_hard_links(rootfs: Path) -> None:
    kept, split = built(rootfs, "kept"), built(rootfs, "split", hardlinks=False)
    assert why(diff(kept, split)) == {
        Rule.LINKS: "1 name linked differently: /large is a link to /etc/again in A, an inode of its own in B"
    }
    assert why(diff(split, kept)) == {
        Rule.LINKS: "1 name linked differently: /large is an inode of its own in A, a link to /etc/again in B"
    }


def test_link_counts(tmp_path: Path) -> None:
    report = compare(tmp_path, directory({b"f": regular(b"")}), directory({b"f": regular(b"", nlink=3)}))
    assert why(report) == {Rule.LINKS: "1 name linked differently: /f has link count 1 in A, 3 in B"}


def test_the_name_that_carries_the_inode(tmp_path: Path) -> None:
    inode = regular(b"", nlink=2)
    first = b"/ 0 40755 2 0 0 0 0.0 - - -\n/a 0 100644 2 0 0 0 0.0 - - -\n/d 0 40755 2 0 0 0 0.0 - - -\n"
    last = b"/ 0 40755 2 0 0 0 0.0 - - -\n/a 0 @120000 - - - - 0.0 /d/b - -\n/d 0 40755 2 0 0 0 0.0 - - -\n"
    (tmp_path / "first").write_bytes(first + b"/d/b 0 @120000 - - - - 0.0 /a - -\n")
    (tmp_path / "last").write_bytes(last + b"/d/b 0 100644 2 0 0 0 0.0 - - -\n")
    one, other = os.fsencode(tmp_path / "first"), os.fsencode(tmp_path / "last")
    said = "1 inode with another primary name: {} is primary in B but not in A"
    assert why(diff(one, other)) == {Rule.LINKS: said.format("/d/b")}
    assert why(diff(other, one)) == {Rule.LINKS: said.format("/a")}
    assert diff(
        one, image_file(tmp_path, "image", directory({b"a": inode, b"d": directory({b"b": HardLink(inode)})}))
    ).same


def test_contents_inside_and_outside_of_the_image(tmp_path: Path) -> None:
    data = b"x" * 100
    digest = digest_bytes(data)
    outside = RegularFile(mode=stat.S_IFREG | 0o644, size=100, content=External(digest, object_path(digest)))
    report = compare(tmp_path, directory({b"f": regular(data)}), directory({b"f": outside}))
    assert why(report) == {Rule.INLINE: "1 file with contents in one image and as an object of the other: /f"}
    assert not report.changes
    assert report.bytes_to_fetch == 100


def test_files_without_digest_are_counted(tmp_path: Path) -> None:
    report = compare(tmp_path, sample_tree(), sample_tree())
    assert report.same
    assert report.contents_unknown == 0  # equal digests say more
    new = sample_tree()
    new.mtime_sec = 1
    assert compare(tmp_path, sample_tree(), new).contents_unknown == 1


XATTRS = {b"user.b": b"1234", b"user.a": b"5678"}


def swapped(data: bytes, path: bytes) -> bytes:
    """The image with the two inline xattrs of an inode, of equal length, in the other order."""
    inode = find(data, path)
    start, end = inode.xattr_start + 12, inode.tail_start
    middle = (start + end) // 2
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def test_order_of_xattrs(tmp_path: Path) -> None:
    data = bytes(write_image(directory({b"d": directory({b"f": regular(b"", xattrs=XATTRS)})})))
    wrong = swapped(data, b"d/f")
    assert sorted(wrong) == sorted(data)
    report = compare(tmp_path, data, wrong)
    reasons = why(report)
    assert reasons[Rule.XATTR_ORDER] == (
        "1 inode of B in another order than a canonical writer's: /d/f has user.b, user.a instead of user.a, user.b"
    )
    assert reasons.keys() == {Rule.XATTR_ORDER, Rule.WRITER}
    offset = find(data, b"d/f").xattr_start + 12 + 4  # behind the entry's header: the names differ
    assert reasons[Rule.WRITER] == (
        "B is not what a canonical writer makes of its tree; "
        f"first difference at {offset:#x} in the xattr (user.b of /d/f)"
    )
    assert not report.changes
    assert why(compare(tmp_path, wrong, data))[Rule.XATTR_ORDER].startswith("1 inode of A ")


@pytest.mark.usefixtures("pure")
def test_sharing_of_xattrs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = directory({name: regular(b"", xattrs=XATTRS) for name in (b"a", b"b")})
    data = bytes(write_image(root))
    with monkeypatch.context() as patched:
        patched.setattr("cfstools.formats.erofs.writer.XattrTable", lambda _areas: XattrTable([]))
        inline = bytes(write_image(root))
    reasons = why(compare(tmp_path, data, inline))
    assert reasons[Rule.XATTR_SHARING] == "2 inodes of B with other xattrs in the shared table: /a"
    assert reasons.keys() == {Rule.XATTR_SHARING, Rule.WRITER}


def test_padding(tmp_path: Path) -> None:
    data = bytes(write_image(sample_tree()))
    offset = next(region.end - 1 for region in regions(data) if region.kind is RegionKind.PADDING)
    report = compare(tmp_path, patch(data, offset, "B", 1), data)
    assert why(report) == {
        Rule.PADDING: f"A has bytes that belong to nothing and are not zero, the first at {offset:#x}"
    }


def test_a_field_that_readers_overlook(tmp_path: Path) -> None:
    data = bytes(write_image(sample_tree()))
    report = compare(tmp_path, data, patch(data, 1024 + 48, "B", 1))
    assert why(report) == {
        Rule.WRITER: "B is not what a canonical writer makes of its tree; "
        "first difference at 0x430 in the superblock, field uuid"
    }


def test_appended_bytes_do_not_count(tmp_path: Path) -> None:
    data = bytes(write_image(sample_tree()))
    report = compare(tmp_path, data, data + b"signature")
    assert report.same
    assert report.b.image_size == len(data)


def test_a_container_image_is_of_version_1(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        for name in ("usr", "etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        info = tarfile.TarInfo("etc/large")
        info.size = 5000
        archive.addfile(info, io.BytesIO(b"l" * 5000))
    image = os.fsencode(tmp_path / "image")
    build(os.fsencode(layer), image)
    report = diff(image, os.fsencode(layer))
    assert report.same
    assert report.b.format == "v1-sha256-12"
    with open(layer, "rb") as stdin:
        assert diff(b"-", image, stdin=stdin).same


def test_errors_name_the_side(tmp_path: Path) -> None:
    good = image_file(tmp_path, "good", sample_tree())
    wrong = image_file(tmp_path, "wrong", bytes(write_image(sample_tree()))[:-1])
    with pytest.raises(ImageError) as caught:
        diff(good, wrong)
    assert caught.value.subject == os.fsdecode(wrong)
    (tmp_path / "dump").write_bytes(b"/ nonsense\n")
    with pytest.raises(DumpError) as refused:
        diff(os.fsencode(tmp_path / "dump"), good)
    assert refused.value.subject == os.fsdecode(tmp_path / "dump")
    with pytest.raises(InputError):
        diff(good, os.fsencode(tmp_path / "missing"))
    with pytest.raises(UsageError):
        diff(b"-", b"-")
