"""What users see of an image that is mounted by FUSE, with the kernel in between."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import fidelity, requirements
from tests.mkcfs import mkcfs
from tests.mount.fuse.mounted import module, served_to, served_to_root, serving
from tests.odd_tree import make_odd_tree
from tests.users import Place, User

pytestmark = [pytest.mark.root, pytest.mark.kernel]


class Odd:
    """The odd tree, its image and its objects, where users can read them, and what root sees of the image extracted."""

    def __init__(self, top: Path) -> None:
        self.tree = make_odd_tree(top / "odd")
        self.image = top / "image"
        self.store = top / "objects"
        mkcfs("build", self.tree, self.image, "--store", self.store)
        self.image.chmod(0o644)
        # Not the source: some attributes that mean something to overlayfs are read back as the marks of whiteouts.
        mkcfs("extract", self.image, top / "extracted", "--store", self.store)
        self.seen = fidelity.look(bytes(top / "extracted"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Odd:
    """The odd tree: never change it."""
    requirements.need_mounts("fuse")
    return Odd(tmp_path_factory.mktemp("fuse"))


@pytest.fixture
def odd(made: Odd, place: Place) -> Odd:
    """The odd tree within reach of the users of the test."""
    for path in (made.image, made.store):
        subprocess.run(["cp", "-a", "--reflink=auto", path, place.top / path.name], check=True)
    copy = Odd.__new__(Odd)
    copy.tree, copy.seen, copy.image, copy.store = made.tree, made.seen, place.top / "image", place.top / "objects"
    return copy


def no_trusted(difference: fidelity.Difference, _inode: fidelity.Seen | None) -> bool:
    """Attributes that only root may have are not shown."""
    return difference.what.startswith("xattr trusted.") and difference.found is None


def test_a_user_sees_the_tree_as_it_is(user: User, odd: Odd) -> None:
    directory = user.home / "mnt"
    directory.mkdir()
    user.give(directory)
    with served_to(user, odd.image, directory, [odd.store]) as served:
        assert f"fuse.mkcfs {directory}" in user.place.new_mounts()
        seen = fidelity.read(user.module("tests.fidelity", "look", directory).stdout)
        assert user.place.root("ls", directory, check=False).code != 0  # root may not look either
    assert "Traceback" not in served.errors
    assert not served.errors
    allowed: dict[str, fidelity.Allowed] = {"trusted": no_trusted}
    left, counts = fidelity.subtract(fidelity.compare(odd.seen, seen), odd.seen, allowed)
    assert left == [], left
    trusted = [key for inode in odd.seen.values() for key in inode.xattrs if key.startswith("trusted.")]
    assert counts["trusted"] == len(trusted)
    assert served.counters["failed"] == served.counters["waiting"] == 0
    assert served.counters["reads"] > 0
    # Contents are read in pieces of at least 16 KiB, and each once.
    files = [inode.size for inode in odd.seen.values() if inode.kind == "file" and inode.size]
    assert served.counters["reads"] <= sum(-(-size // 16384) for size in files)
    assert served.counters["bytes"] <= sum(files)


def test_root_of_a_namespace_sees_the_tree_with_its_own_ids(user: User, odd: Odd) -> None:
    directory = user.home / "mnt"
    directory.mkdir()
    user.give(directory)
    serve = shlex.join(serving(odd.image, directory, [odd.store], "--detached", "--allow-other"))
    look = shlex.join(module("tests.fidelity", "look", directory))
    script = f"""
        {serve} >$TMPDIR/out 2>$TMPDIR/err & until grep -q ready $TMPDIR/out; do sleep 0.05; done
        {look}
        umount {directory}; wait; test ! -s $TMPDIR/err
    """
    looked = user.run("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script)
    seen = fidelity.read(looked.stdout)
    nobody = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))

    def owner(difference: fidelity.Difference, _inode: fidelity.Seen | None) -> bool:
        """Ids that the namespace does not know; the caller's number outside is nobody's in the tree."""
        return difference.what in {"uid", "gid"} and difference.found == nobody and difference.expected != 0

    def acl(difference: fidelity.Difference, _inode: fidelity.Seen | None) -> bool:
        return difference.what.startswith("xattr system.posix_acl_")

    allowed: dict[str, fidelity.Allowed] = {"trusted": no_trusted, "owner": owner, "acl": acl}
    left, counts = fidelity.subtract(fidelity.compare(odd.seen, seen), odd.seen, allowed)
    assert left == [], left
    assert counts["owner"] > 10


def test_the_store_form_is_a_layer_of_an_overlay(made: Odd, tmp_path: Path) -> None:
    """The kernel takes the objects from it that no store has, and sees the same tree."""
    requirements.need_mounts("fuse", "overlay", "erofs")
    objects, directory, empty = tmp_path / "fuse", tmp_path / "mnt", tmp_path / "empty"
    for path in (objects, directory, empty):
        path.mkdir()
    with served_to_root(made.image, objects, [made.store], "--store-form") as served:
        mkcfs("mount", made.image, directory, "--store", empty, "--store", objects)
        try:
            mkcfs_seen = fidelity.look(bytes(directory))
            assert not list(empty.iterdir())
        finally:
            subprocess.run(["umount", directory], check=True)
    assert not served.errors
    shutil.rmtree(empty)
    mkcfs("mount", made.image, directory, "--store", made.store)
    try:
        assert fidelity.compare(fidelity.look(bytes(directory)), mkcfs_seen) == []
    finally:
        subprocess.run(["umount", directory], check=True)


def test_only_objects_of_the_image_have_names(made: Odd, tmp_path: Path) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    with served_to_root(made.image, directory, [made.store], "--store-form"):
        listed = {
            os.path.relpath(os.path.join(top, name), directory)
            for top, _, names in os.walk(directory)
            for name in names
        }
        there = {str(path.relative_to(made.store)) for path in made.store.glob("??/*")}
        assert listed == there
        name = next(iter(sorted(there)))
        status = (directory / name).stat()
        assert (status.st_mode, status.st_size) == (0o100444, (made.store / name).stat().st_size)
        assert (directory / name).read_bytes() == (made.store / name).read_bytes()
        for wrong in (name.upper(), name[:-1], name + "0", name[:2] + "/", "zz", "AB", "0", name[:3] + "0" * 62):
            assert not (directory / wrong).is_file()
