"""Trees and stores as one mount, in a namespace where the caller is root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cfstools.errors import InputError, StoreError, Unsupported, UsageError
from cfstools.linux import mount as linux
from cfstools.mount import Layers, OverlayVerity
from cfstools.mount.rootless import mount_tree, overlay, overlay_for_users
from cfstools.mount.rootless.overlay import overlay_of
from cfstools.tree import Directory, Entry, External, RegularFile
from cfstools.verity import digest_bytes, object_path
from tests import requirements
from tests.inside import inside

DATA = b"contents of an object\n" * 100


@pytest.fixture(autouse=True)
def _needs() -> None:
    requirements.need_overlay_for_users()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one object."""
    store = tmp_path / "store"
    put(store, DATA)
    return store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where things are mounted in the namespace."""
    place = tmp_path / "place"
    place.mkdir()
    return place


def put(store: Path, data: bytes) -> Path:
    path = store / os.fsdecode(object_path(digest_bytes(data)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree(**files: RegularFile) -> Directory:
    entries: dict[bytes, Entry] = {name.encode(): file for name, file in files.items()}
    return Directory(mode=stat.S_IFDIR | 0o755, entries=entries)


def external(data: bytes = DATA, *, path: bytes | None = None, digest: bytes | None = None) -> RegularFile:
    payload = object_path(digest_bytes(data)) if path is None else path
    return RegularFile(mode=stat.S_IFREG | 0o644, size=len(data), content=External(digest, payload))


def mounted(root: Directory, layers: Layers, place: Path, look: Callable[[], Any]) -> Any:
    def work() -> Any:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY)
        done = mount_tree(root, layers, fd)
        os.close(fd)
        return done, look()

    return inside(work)


def outcome(path: Path) -> bytes | str:
    """What a file holds, or the error that reading it gives."""
    try:
        return path.read_bytes()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_contents_come_from_the_first_store_that_has_them(tmp_path: Path, store: Path, place: Path) -> None:
    other = tmp_path / "other"
    second = put(other, b"second\n" * 1000).read_bytes()
    layers = Layers(stores=(bytes(store), bytes(other)))
    root = tree(one=external(), two=external(second))
    done, seen = mounted(root, layers, place, lambda: [outcome(place / name) for name in ("one", "two")])
    assert seen == [DATA, second]
    assert (done.loop, done.objects_checked, done.left_out) == (False, False, ())
    assert list(place.iterdir()) == []


def test_nothing_can_be_written_and_it_is_known_as_ours(store: Path, place: Path) -> None:
    def look() -> Any:
        try:
            (place / "new").touch()
        except OSError as error:
            return error.errno, linux.mounted_at(bytes(place))

    _, seen = mounted(tree(one=external()), Layers(stores=(bytes(store),)), place, look)
    assert seen == (errno.EROFS, linux.Mounted(b"overlay", b"composefs"))


def test_paths_of_objects_do_not_leave_the_store(tmp_path: Path, store: Path, place: Path) -> None:
    """Neither ``..`` nor links in it lead anywhere."""
    (tmp_path / "secret").write_bytes(DATA)
    (store / "link").symlink_to(tmp_path / "secret")
    (store / "up").symlink_to("..")
    paths = {"up": b"../secret", "deep": b"../" * 100 + bytes(tmp_path / "secret").lstrip(b"/"), "link": b"link"}
    paths |= {"through": b"up/secret", "absolute": b"/" + bytes(tmp_path / "secret"), "dots": b"ab/../../secret"}
    root = tree(**{name: external(path=path) for name, path in paths.items()}, fine=external())
    _, seen = mounted(
        root, Layers(stores=(bytes(store),)), place, lambda: {name: outcome(place / name) for name in (*paths, "fine")}
    )
    assert seen.pop("fine") == DATA
    assert DATA not in seen.values()
    assert all(isinstance(found, str) for found in seen.values())


def test_objects_of_the_wrong_size_and_missing_ones(store: Path, place: Path) -> None:
    root = tree(
        missing=external(b"x" * 500),
        longer=RegularFile(mode=stat.S_IFREG | 0o644, size=10, content=External(None, object_path(digest_bytes(DATA)))),
        fine=external(),
    )
    _, seen = mounted(
        root, Layers(stores=(bytes(store),)), place, lambda: [outcome(place / name) for name in ("missing", "fine")]
    )
    assert isinstance(seen[0], str)
    assert seen[1] == DATA


def test_flags_of_the_mount(store: Path, place: Path) -> None:
    layers = Layers(stores=(bytes(store),), nosuid=True, nodev=True, noexec=True)
    _, flags = mounted(tree(one=external()), layers, place, lambda: os.statvfs(place).f_flag)
    for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
        assert flags & flag


def test_what_cannot_be_opened(tmp_path: Path, store: Path, place: Path) -> None:
    none = bytes(tmp_path / "none")
    with pytest.raises(StoreError, match="cannot open"):
        mounted(tree(one=external()), Layers(stores=(bytes(store), none)), place, lambda: None)
    layers = Layers(stores=(bytes(store),), upper=none, work=none, writable=True)
    with pytest.raises(InputError, match="cannot open"):
        mounted(tree(one=external()), layers, place, lambda: None)
    with pytest.raises(UsageError, match="owners"):
        mounted(tree(one=external()), Layers(stores=(bytes(store),), idmap=b"/proc/self/ns/user"), place, lambda: None)


def test_no_contents_without_fsverity_where_it_is_required(store: Path, place: Path) -> None:
    """The file system of the tests has none: no object may be opened."""
    layers = Layers(stores=(bytes(store),), objects=OverlayVerity.REQUIRE)
    root = tree(one=external(digest=digest_bytes(DATA)), inline=RegularFile(mode=0o100644, size=1, content=b"x"))
    done, seen = mounted(root, layers, place, lambda: [outcome(place / name) for name in ("one", "inline")])
    assert done.objects_checked
    assert seen == ["EIO", b"x"]


def test_a_lazy_layer_is_the_last_store(store: Path, place: Path) -> None:
    """Here a file system in memory stands for what a server would show."""
    late = b"fetched\n" * 50

    def work() -> Any:
        with linux.FsContext(b"tmpfs") as context:
            fd = context.mount(linux.MountFlag(0))
        put(Path(f"/proc/self/fd/{fd}"), late)
        target = os.open(place, os.O_PATH | os.O_DIRECTORY)
        layers = Layers(stores=(bytes(store),), lazy=lambda: fd, objects=OverlayVerity.TRY)
        done = mount_tree(tree(one=external(), late=external(late)), layers, target)
        os.close(fd)
        return done.objects_checked, [outcome(place / name) for name in ("one", "late")]

    assert inside(work) == (False, [DATA, late])


def test_the_probe() -> None:
    assert inside(overlay_for_users)


def test_the_probe_without_rights() -> None:
    if os.geteuid():
        assert not overlay_for_users()


def test_a_kernel_without_data_layers_for_users(store: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels before 6.16 answer."""

    def refuse(self: linux.FsContext, key: bytes, fd: int) -> None:
        raise OSError(errno.EINVAL, "lower data-only dirs require metacopy support")

    monkeypatch.setattr(linux.FsContext, "set_fd", refuse)
    assert not inside(overlay_for_users)
    with pytest.raises(Unsupported, match=r"takes no data layers from users \(Linux 6\.16\)") as caught:
        mounted(tree(one=external()), Layers(stores=(bytes(store),)), place, lambda: None)
    assert "Method.FUSE" in str(caught.value.hint)


def test_a_kernel_without_overlay(store: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(overlay, "_context", refuse)
    with pytest.raises(Unsupported, match="CONFIG_OVERLAY_FS"):
        mounted(tree(one=external()), Layers(stores=(bytes(store),)), place, lambda: None)


def test_a_kernel_whose_overlay_checks_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = linux.FsContext.set_string

    def refuse(self: linux.FsContext, key: bytes, value: bytes) -> None:
        if key == b"verity":
            raise OSError(errno.EINVAL, "Unknown parameter 'verity'")
        real(self, key, value)

    def work(objects: OverlayVerity) -> bool:
        with linux.FsContext(b"tmpfs") as context:
            top = context.mount(linux.MountFlag(0))
        return overlay_of(top, Layers(stores=(bytes(store),), objects=objects))[1]

    monkeypatch.setattr(linux.FsContext, "set_string", refuse)
    assert inside(lambda: work(OverlayVerity.TRY)) is False
    with pytest.raises(InputError, match="Unknown parameter"):
        inside(lambda: work(OverlayVerity.REQUIRE))


def test_a_place_that_nothing_can_be_mounted_on(store: Path, place: Path) -> None:
    def work() -> None:
        file = os.open(place / "file", os.O_RDONLY | os.O_CREAT)
        mount_tree(tree(one=external()), Layers(stores=(bytes(store),)), file)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match="cannot mount there"):
        inside(work)
    assert len(os.listdir("/proc/self/fd")) == before
