"""The ways to show an image, for tests that do the same with each of them, and what may differ between them."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests import requirements
from tests.fidelity import Allowed, Difference, Seen, Tree, read
from tests.requirements import REPOSITORY
from tests.users import User, Word


class Image(NamedTuple):
    """An image with its store, where all users can read them; ``empty`` is a store of the user that has nothing."""

    path: Path
    store: Path


@dataclass(frozen=True)
class Way:
    """One way: the verb and its options, and what the machine needs for it.

    ``run``: the image is shown to one command, in a namespace; else on a directory until it is unmounted. ``root``:
    only root can.
    """

    name: str
    options: tuple[str, ...]
    needs: tuple[Callable[[], None], ...]
    run: bool = False
    root: bool = False
    lazy: bool = False

    def require(self, user: User) -> None:
        """End the test where this machine cannot."""
        for need in self.needs:
            need()
        if "sub" in self.options and not user.account.ranges:
            requirements.missing("needs newuidmap and ranges of subordinate ids")


_OVERLAY = (requirements.need_overlay_for_users,)
_FUSE = (requirements.need_fuse_for_users,)
_KERNEL = (lambda: requirements.need_mounts("erofs", "overlay"),)

KERNEL = Way("kernel", ("--method", "kernel", "-o", "suid,dev"), _KERNEL, root=True)
USER_WAYS = (
    Way("overlay-sub", ("--method", "overlay", "--map", "sub"), _OVERLAY, run=True),
    Way("overlay-root", ("--method", "overlay", "--map", "root"), _OVERLAY, run=True),
    Way("overlay-same", ("--method", "overlay", "--map", "same"), _OVERLAY, run=True),
    Way("fuse-inside-sub", ("--method", "fuse", "--map", "sub"), _FUSE, run=True),
    Way("fuse-inside-root", ("--method", "fuse", "--map", "root"), _FUSE, run=True),
    Way("fuse", ("--method", "fuse"), _FUSE),
    Way("link", ("--method", "link"), _OVERLAY),
)
ROOT_WAYS = (KERNEL, Way("fuse-of-root", ("--method", "fuse", "--allow-other"), _FUSE, root=True))


def lazily(way: Way) -> Way:
    """The same with an empty store and a lazy place."""
    return Way(f"{way.name}-lazy", way.options, way.needs, run=way.run, root=way.root, lazy=True)


ALL = (*ROOT_WAYS, *USER_WAYS)
LAZY = tuple(lazily(way) for way in ALL)


class Shown:
    """An image that is shown: commands see it at ``directory``."""

    def __init__(self, user: User, way: Way, image: Image, directory: Path, report: dict[str, object]) -> None:
        self._user = user
        self._way = way
        self._image = image
        self.directory = directory
        self.report = report

    def command(self, *words: Word, check: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command that sees the image: the user, or root for ways of root."""
        path = {"PYTHONPATH": str(REPOSITORY)}
        if self._way.root:
            return self._user.place.root("env", f"PYTHONPATH={REPOSITORY}", *words, check=check)
        if self._way.run:
            inside = mkcfs_words("run", self._way, self._user, self._image, self.directory)
            return self._user.run(*inside, "--", *words, check=check, env=path)
        return self._user.run(*words, check=check, env=path)

    def look(self, *, contents: bool = True) -> Tree:
        """Look at all of the tree."""
        options = [] if contents else ["--no-contents"]
        _, lines, _ = self.command(sys.executable, "-m", "tests.fidelity", "look", self.directory, *options)
        return read(lines)


def mkcfs_words(verb: str, way: Way, user: User, image: Image, directory: Path) -> list[Word]:
    """The words of a command that shows *image* on *directory*."""
    if way.lazy:
        stores = ["--store", str(own_store(user, way)), "--lazy", str(image.store), "--prefetch", "none"]
    else:
        stores = ["--store", str(image.store)]
    return [sys.executable, "-m", "cfstools.cli", verb, *way.options, *stores, image.path, directory]


def own_store(user: User, way: Way) -> Path:
    """The store of a lazy way, empty at first."""
    store = user.home / f"store-{way.name}"
    if not store.exists():
        store.mkdir()
        if not way.root:
            os.chown(store, user.uid, user.gid)
    return store


@contextmanager
def shown(user: User, way: Way, image: Image) -> Iterator[Shown]:
    """Show *image* in this way for the block, below the user's home; a name that is there already is used again."""
    way.require(user)
    directory = user.home / f"at-{way.name}"
    if "link" not in way.options:
        directory.mkdir(exist_ok=True)
        os.chown(directory, user.uid, user.gid)
    if way.run:
        yield Shown(user, way, image, directory, {})
        return
    run = user.place.root if way.root else user.run
    words = mkcfs_words("mount", way, user, image, directory)
    done = run(*words, "--json")
    yield Shown(user, way, image, directory, json.loads(done.stdout))
    run(sys.executable, "-m", "cfstools.cli", "umount", directory)


def allowed_for(way: Way, user: User) -> dict[str, Allowed]:
    """The differences to the kernel mount that a way may have, by the name under which its report counts them."""
    if "kernel" in way.options:
        return {}
    allowed: dict[str, Allowed] = {
        "trusted attributes": lambda difference, inode: difference.what.startswith("xattr trusted."),
    }
    if "fuse" in way.options and not way.run:
        return allowed
    if "fuse" not in way.options:
        allowed["devices"] = lambda difference, inode: difference.what == "missing" and _is_device(inode)
    foreign = _foreign(way, user)
    allowed["owners"] = lambda difference, inode: (
        difference.what in {"uid", "gid"} and inode is not None and foreign(getattr(inode, difference.what))
    )
    allowed["access control lists"] = lambda difference, inode: difference.what.startswith("xattr system.posix_acl")
    if "link" in way.options:
        lent = _lent(user)
        # Looked at from outside of the namespace: its root is the user, and others are the ids that were lent.
        allowed["owners"] = lambda difference, inode: (
            (difference.what == "uid" and user.account.owns(_number(difference.found)))
            or (difference.what == "gid" and _number(difference.found) in lent)
        )
    if "same" in way.options or "link" in way.options:
        # They name root of the namespace, which this one has not.
        allowed["file capabilities"] = lambda difference, inode: difference.what == "xattr security.capability"
        # Its commands are no root, not even of the namespace: modes count.
        allowed["modes"] = lambda difference, inode: difference.found == "!EACCES"
    return allowed


def count_inodes(differences: list[Difference], expected: Tree, allowed: dict[str, Allowed]) -> dict[str, int]:
    """How many inodes have differences of each kind, the names of one counted once."""
    inodes: dict[str, set[str]] = {name: set() for name in allowed}
    for difference in differences:
        inode = expected.get(difference.path)
        for name, allows in allowed.items():
            if allows(difference, inode):
                inodes[name].add(min(inode.names, default=difference.path) if inode else difference.path)
                break
    return {name: len(found) for name, found in inodes.items() if found}


def _number(value: object) -> int:
    return value if isinstance(value, int) else -1


def _lent(user: User) -> Container[int]:
    """The groups that a user may map: the own one, and those of /etc/subgid."""
    lines = [line.split(":") for line in Path("/etc/subgid").read_text(encoding="ascii").splitlines()]
    ranges = [range(int(start), int(start) + int(count)) for name, start, count in lines if name == user.account.name]
    return frozenset((user.gid, *itertools.chain.from_iterable(ranges)))


def _is_device(inode: Seen | None) -> bool:
    return inode is not None and inode.kind.endswith("device")


def _foreign(way: Way, user: User) -> Callable[[object], bool]:
    """Whether an owner has no number in the namespace of a way."""
    if "sub" in way.options:
        lent = 1 + sum(count for _, count in user.account.ranges)
        return lambda owner: isinstance(owner, int) and owner >= lent
    own = user.uid if "same" in way.options else 0
    return lambda owner: owner != own


def unexpected(differences: list[Difference], most: int = 20) -> str:
    """Differences for people."""
    lines = [f"{each.path}: {each.what}: {each.expected!r}, found {each.found!r}" for each in differences[:most]]
    return "\n".join([f"{len(differences)} differences", *lines])
