"""What the command says below the line of an error: the remedies it advises, and the symbolic links in the way."""

from __future__ import annotations

import errno
import os

from cfstools.errors import CfsError, Phrase, Remedy
from cfstools.text import shown_path

# What the kernel answers of a link that leads nowhere or in a circle, or that is not to be followed.
_OF_LINKS = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EEXIST})

OPTIONS = {
    Remedy.ALLOW_DUPLICATES: "--allow-duplicates",
    Remedy.ATTACH: "--attach",
    Remedy.BUILD: "`mkcfs build`",
    Remedy.AUTHORITIES: "--ca-file FILE",
    Remedy.EXTRACT: "`mkcfs extract`",
    Remedy.FORGET: "--forget IMAGE",
    Remedy.FORGET_MISSING: "--forget-missing",
    Remedy.FSCK: "mkcfs store fsck",
    Remedy.KEEP: "--keep",
    Remedy.KEEP_DIRS: "--keep-dir",
    Remedy.LAYER_STORES: "--store or -o basedir=",
    Remedy.MAX_ENTRIES: "--max-entries",
    Remedy.MAX_RATIO: "--max-ratio",
    Remedy.MAX_UNPACKED: "--max-unpacked",
    Remedy.MAX_WINDOW: "--max-window",
    Remedy.METHOD_FUSE: "--method fuse",
    Remedy.MIRRORS: "--from",
    Remedy.NO_DEVICES: "--skip-devices",
    Remedy.NO_IMAGES: "--no-image",
    Remedy.NO_OWNERS: "--no-owner",
    Remedy.NO_XATTRS: "--skip-xattrs",
    Remedy.ONE_THREAD: "--threads 1",
    Remedy.PLAIN_HTTP: "--plain-http",
    Remedy.PLATFORM: "--platform os/arch",
    Remedy.REMOVE_SIGNATURES: "`mkcfs sign --remove`",
    Remedy.REQUIRE_VERITY: "--verity require",
    Remedy.RUN: "`mkcfs run`",
    Remedy.SHARED: "--shared",
    Remedy.STORES: "--store",
    Remedy.STORE_PUSH: "`mkcfs store push`",
    Remedy.USER_XATTRS: "--user-xattrs",
    Remedy.VERIFY: "`mkcfs verify`",
}


def spelled(text: str) -> str:
    """*text* of an error with options and verbs of the command where the library names parameters and functions."""
    return text.spelled(OPTIONS) if isinstance(text, Phrase) else text


def link_hint(error: CfsError) -> str | None:
    """Which symbolic link on the way to the path that *error* is about may be the reason, or ``None``."""
    cause, path = error.__cause__, error.subject
    # A path that is shown otherwise than it is cannot be looked at.
    if not isinstance(cause, OSError) or cause.errno not in _OF_LINKS or not path or "\\" in path:
        return None
    links = [link for link in _ways(path) if os.path.islink(link)]
    for link in links:
        try:
            os.stat(link)
        except OSError as failure:
            return _broken(link, failure)
    # Followed, the path leads to something: that it was refused has to do with the link.
    return _refused(links[-1], path, cause.errno) if links and os.path.exists(path) else None


def _ways(path: str) -> list[str]:
    """*path* up to each of its names."""
    ends = [place for place, char in enumerate(path) if char == "/" and place and path[place - 1] != "/"]
    return list(dict.fromkeys([*(path[:end] for end in ends), path.rstrip("/") or path]))


def _broken(link: str, failure: OSError) -> str | None:
    if failure.errno == errno.ELOOP:
        return f"{link} is a symbolic link that leads back to itself: mend it, or name another path"
    if failure.errno in {errno.ENOENT, errno.ENOTDIR}:
        return f"{link} is a symbolic link to {_target(link)}, where nothing is: mend it, or name another path"
    return None


def _refused(link: str, path: str, number: int | None) -> str | None:
    if number == errno.ELOOP or (number == errno.ENOTDIR and os.path.isdir(link)):
        return f"{link} is a symbolic link to {_target(link)}, which is not followed here: put there what it leads to"
    if link == path and not os.path.isdir(link):
        return f"{link} is a symbolic link to {_target(link)}, which is no directory"
    return None


def _target(link: str) -> str:
    try:
        return shown_path(os.readlink(link))
    except OSError:
        return "another place"
