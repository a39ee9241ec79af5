"""What a path that was refused has to do with symbolic links, and what to do about it."""

from __future__ import annotations

import errno
import os

from cfstools.errors import CfsError, shown_path

# What the kernel answers of a link that leads nowhere or in a circle, or that is not to be followed.
_OF_LINKS = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EEXIST})


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
