"""Rebuilds in which the walk takes digests from the cache and lists no attributes: nothing that changed is missed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from cfstools import native
from cfstools.api.build import BuildOptions, BuildReport, ObjectOptions, build
from cfstools.errors import SourceChanged, StoreError
from cfstools.store import DirectoryStore
from cfstools.store.base import Sync
from cfstools.store.cache import digest_cache as cache
from cfstools.store.cache.recall import Recall, Taken
from cfstools.tree.xattrs import XattrPolicy
from tests.loops import made, mounted
from tests.requirements import need_command

CAPABILITY = bytes.fromhex("010000020004000000000000") + bytes(8)
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, number)
    for tag, rights, number in ((1, 6, 2**32 - 1), (2, 4, 1), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1))
)


class Builder(NamedTuple):
    """Builds into one store, with one cache; ``taken`` counts files that the walk itself found."""

    place: Path
    source: Path
    taken: list[int]

    def build(self, *, cached: bool = True, threads: int = 2, sync: Sync = "auto", **options: Any) -> BuildReport:
        return build(
            os.fsencode(self.source),
            None,
            stores=[os.fsencode(self.place / "store")],
            options=BuildOptions(**options),
            objects=ObjectOptions(cache=os.fsencode(self.place / "cache") if cached else None, sync=sync),
            threads=threads,
        )

    def hits(self, **options: Any) -> tuple[int, int]:
        """How many files were known, and how many the walk found; the image is the one that reading all gives."""
        before = sum(self.taken)
        report = self.build(**options)
        found = sum(self.taken) - before
        assert report.digest == self.build(cached=False, **options).digest
        return report.cache_hits, found


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    """With a source of seven files that are objects, and some that are none."""
    monkeypatch.setattr(cache, "RACY_NS", 0)
    taken: list[int] = []
    take = Recall.take

    def counted(recall: Recall) -> Taken:
        found = take(recall)
        taken.append(len(found))
        return found

    monkeypatch.setattr(Recall, "take", counted)
    fill(tmp_path / "source")
    return Builder(tmp_path, tmp_path / "source", taken)


def fill(source: Path) -> None:
    (source / "usr/sub").mkdir(parents=True)
    for number in range(6):
        (source / f"usr/app{number}").write_bytes(b"A" * (5000 + number))
    (source / "usr/sub/file").write_bytes(b"B" * 5000)
    (source / "usr/link").symlink_to("app0")
    (source / "usr/empty").touch()
    (source / "usr/inline").write_bytes(b"i" * 64)
    time.sleep(0.05)


def replace_file(usr: Path) -> None:
    """By one with the same size and times, and other contents."""
    was = (usr / "app0").stat()
    (usr / "new").write_bytes(b"C" * was.st_size)
    os.utime(usr / "new", ns=(was.st_atime_ns, was.st_mtime_ns))
    (usr / "new").rename(usr / "app0")


def replace_link(usr: Path) -> None:
    """By one with the same length and times."""
    was = (usr / "link").lstat()
    (usr / "link").unlink()
    (usr / "link").symlink_to("app1")
    os.utime(usr / "link", ns=(was.st_atime_ns, was.st_mtime_ns), follow_symlinks=False)


def exchange_names(usr: Path) -> None:
    for before, after in (("app0", "third"), ("app1", "app0"), ("third", "app1")):
        (usr / before).rename(usr / after)


def write_back_times(usr: Path) -> None:
    was = (usr / "app0").stat()
    with (usr / "app0").open("r+b") as file:
        file.write(b"Z")
    os.utime(usr / "app0", ns=(was.st_atime_ns, was.st_mtime_ns))


# What changes, and how many of seven files are known afterwards.
CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "contents": (write_back_times, 6),
    "attribute of users": (lambda usr: os.setxattr(usr / "app0", "user.x", b"y"), 6),
    "trusted attribute": (lambda usr: os.setxattr(usr / "app0", "trusted.x", b"y"), 6),
    "capability": (lambda usr: os.setxattr(usr / "app0", "security.capability", CAPABILITY), 6),
    "access list": (lambda usr: os.setxattr(usr / "app0", "system.posix_acl_access", ACL), 6),
    "mode": (lambda usr: (usr / "app0").chmod(0o755), 6),
    "owner": (lambda usr: os.chown(usr / "app0", 0, 7), 6),
    "time": (lambda usr: os.utime(usr / "app0", (1, 1)), 6),
    "another file": (replace_file, 6),
    "names exchanged": (exchange_names, 5),
    "target of a link": (replace_link, 7),
    "attribute of a link": (lambda usr: os.setxattr(usr / "link", "trusted.x", b"y", follow_symlinks=False), 7),
    "attribute of a directory": (lambda usr: os.setxattr(usr, "user.x", b"y"), 7),
    "directory renamed": (lambda usr: (usr / "sub").rename(usr / "other"), 7),
    "hard link": (lambda usr: os.link(usr / "app0", usr / "app"), 6),
    "a name less": (lambda usr: (usr / "app0").unlink(), 6),
    "emptied": (lambda usr: os.truncate(usr / "app0", 0), 6),
}  # fmt: skip


@pytest.mark.root
@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_noticed(builder: Builder, change: str) -> None:
    native_count = 7 if native.IMPLEMENTATION == "native" else 0
    assert builder.hits() == (0, 0)
    assert builder.hits() == (7, native_count)
    function, known = CHANGES[change]
    function(builder.source / "usr")
    hits, found = builder.hits()
    assert hits == known
    assert found == (hits if native_count else 0)
    time.sleep(0.05)
    builder.hits()
    builder.hits()


@pytest.mark.usefixtures("native_in_use")
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
@pytest.mark.parametrize("name", ["user.x", "trusted.x", "system.posix_acl_access"])
def test_attributes_change_the_ctime(builder: Builder, kind: str, name: str) -> None:
    """On every file system that is believed; also when they go, and when they come back."""
    with mounted(made(builder.place, kind), kind) as place:
        fill(place / "tree")
        builder = builder._replace(source=place / "tree")
        assert [builder.hits(), builder.hits()] == [(0, 0), (7, 7)]
        os.setxattr(place / "tree/usr/app0", name, ACL)
        assert builder.hits() == (6, 6)
        time.sleep(0.05)
        assert [builder.hits(), builder.hits()] == [(7, 6), (7, 6)]
        os.removexattr(place / "tree/usr/app0", name)
        assert builder.hits() == (6, 6)


@pytest.mark.usefixtures("native_in_use")
@pytest.mark.root
@pytest.mark.parametrize("weak_first", [True, False])
def test_attributes_that_only_some_are_shown(builder: Builder, weak_first: bool) -> None:
    """Root without CAP_SYS_ADMIN sees no trusted attributes: that these files have none says it to nobody else."""
    need_command("setpriv")
    os.setxattr(builder.source / "usr/app0", "trusted.x", b"y")
    time.sleep(0.05)

    def weak() -> str:
        program = (
            "import sys; from cfstools.store.cache import digest_cache; digest_cache.RACY_NS = 0\n"
            "from cfstools.cli import main; main()"
        )
        words: list[str | Path] = [
            "setpriv",
            "--bounding-set=-sys_admin",
            sys.executable,
            "-c",
            program,
            "build",
            "--print-digest",
        ]
        places: list[str | Path] = [builder.source, builder.place / "out.cfs", "--store", builder.place / "store"]
        done = subprocess.run(
            [*words, *places, "--cache-dir", builder.place / "cache"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )
        assert done.returncode == 0, done.stderr
        digest: str = done.stdout
        return digest

    if not weak_first:
        assert [builder.hits(), builder.hits()] == [(0, 0), (7, 6)]
    first = weak()
    assert [weak(), weak()] == [first, first]
    assert builder.hits() == (7, 6)
    assert builder.build().digest != first


@pytest.mark.usefixtures("native_in_use")
@pytest.mark.root
@pytest.mark.parametrize("policy", [XattrPolicy.USER, XattrPolicy.NONE])
def test_attributes_that_were_not_asked_for(builder: Builder, policy: XattrPolicy) -> None:
    os.setxattr(builder.source / "usr/app0", "trusted.x", b"y")
    os.setxattr(builder.source / "usr/app1", "user.x", b"y")
    time.sleep(0.05)
    assert builder.hits(xattrs=policy) == (0, 0)
    # That nobody looked for others is no reason to say that there are none. The first file of all that have the same
    # attributes is left to the caller.
    assert builder.hits(xattrs=policy) == (7, 7 if policy is XattrPolicy.NONE else 5)
    assert builder.hits() == (7, 5)
    (builder.place / "cache").rename(builder.place / "old")
    assert [builder.hits(), builder.hits()] == [(0, 0), (7, 5)]
    assert builder.hits(xattrs=policy) == (7, 7 if policy is XattrPolicy.NONE else 5)
    assert builder.hits() == (7, 5)


@pytest.mark.usefixtures("native_in_use")
@pytest.mark.parametrize(("before", "is_said"), [(0, True), (3600, False)])
def test_files_that_changed_since_the_walk_began(
    builder: Builder, before: int, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change might have come in the same moment, after the attributes were looked at."""
    real = time.time_ns
    opened = cache.DigestCache.__init__

    def early(self: cache.DigestCache, *words: Any, **named: Any) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() - before * 10**9)
        opened(self, *words, **named)
        monkeypatch.setattr(time, "time_ns", real)

    said: set[bool] = set()
    take = Recall.take

    def watched(recall: Recall) -> Taken:
        taken = take(recall)
        said.update(bare != 0 for *_, bare in native.KNOWN_RECORD.iter_unpack(taken.heads))
        return taken

    monkeypatch.setattr(cache.DigestCache, "__init__", early)
    builder.build()
    monkeypatch.setattr(cache.DigestCache, "__init__", opened)
    monkeypatch.setattr(Recall, "take", watched)
    assert builder.hits() == (7, 7)
    assert said == {is_said}


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("threads", [1, 3])
def test_objects_that_the_store_has_lost(builder: Builder, threads: int) -> None:
    builder.build()
    store = builder.place / "store"
    whole = sorted(path.relative_to(store) for path in store.rglob("*") if len(path.name) == 62)
    assert len(whole) == 7
    (store / whole[0]).unlink()
    (store / whole[1]).parent.joinpath("away").mkdir()
    (store / whole[1]).rename(store / whole[1].parent / "away/elsewhere")

    def again() -> tuple[int, int]:
        report = builder.build(threads=threads)
        assert report.digest == builder.build(cached=False).digest
        assert all((store / path).is_file() for path in whole)
        return report.cache_hits, report.objects_new

    assert again() == (5, 2)
    assert again() == (7, 0)
    shutil.rmtree(store)
    assert again() == (0, 7)
    for path in whole[2:4]:
        shutil.rmtree(store / path.parent)
    hits, new = again()
    assert (hits + new, new >= 2) == (7, True)
    os.truncate(store / whole[4], 5)
    with pytest.raises(StoreError, match="damaged object"):
        again()
    (store / whole[4]).unlink()
    (store / whole[4]).symlink_to(store / whole[5])
    with pytest.raises(StoreError):
        again()


@pytest.mark.usefixtures("native_in_use")
def test_a_file_that_changes_once_it_was_recalled(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its object it must be read, and is no longer what the walk met."""
    builder.build()
    shutil.rmtree(builder.place / "store")
    builder.build(cached=False, exclude=(b"app0",))
    take = Recall.take

    def changed(recall: Recall) -> Taken:
        write_back_times(builder.source / "usr")
        return take(recall)

    monkeypatch.setattr(Recall, "take", changed)
    with pytest.raises(SourceChanged, match="app0"):
        builder.build()


@pytest.mark.usefixtures("each_implementation")
def test_entries_are_refreshed_while_they_are_met(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a day :meth:`DigestCache.find` does it, for which the walk leaves them."""
    is_native = native.IMPLEMENTATION == "native"
    assert builder.hits() == (0, 0)
    now = time.time_ns()
    for day, found in ((0, 7), (2, 0), (2, 7), (20, 0), (45, 0), (45, 7)):
        monkeypatch.setattr(time, "time_ns", lambda day=day: now + day * 86_400 * 10**9)
        assert builder.hits() == (7, found if is_native else 0), day


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("options", [{"use_epoch": True}, {"hardlinks": False}, {"exclude": (b"app0",)}])
def test_builds_with_other_options(builder: Builder, options: dict[str, Any]) -> None:
    os.link(builder.source / "usr/app1", builder.source / "usr/again")
    time.sleep(0.05)
    assert builder.hits()[0] == 0
    count = 7 + ("hardlinks" in options) - ("exclude" in options)
    # Which of its names an inode has first depends on the others, unless each name is an inode.
    found = (count if "hardlinks" in options else count - 1) if native.IMPLEMENTATION == "native" else 0
    assert builder.hits(**options) == (count, found)


@pytest.mark.usefixtures("native_in_use")
@pytest.mark.parametrize("failing", ["xattr_view", "has_prefixes"])
def test_what_cannot_be_looked_up(builder: Builder, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not list a store can still use it, and without a view all attributes are asked for."""

    def refused(_: object) -> NoReturn:
        raise PermissionError if failing == "xattr_view" else StoreError("cannot list the store")

    monkeypatch.setattr(cache if failing == "xattr_view" else DirectoryStore, failing, refused)
    assert [builder.hits(sync="batch"), builder.hits(sync="batch")] == [(0, 0), (7, 7)]
    (builder.source / "usr/app0").chmod(0o700)
    assert builder.hits(sync="batch") == (6, 6)
