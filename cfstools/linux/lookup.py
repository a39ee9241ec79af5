"""What a path leads to, without taking every failure for nothing, as ``os.path.isdir`` and its like do."""

from __future__ import annotations

import errno
import os
import stat

from cfstools.errors import os_error, shown_path

# Nothing can be there; whoever opens the path is told why. So is who gives a path with a zero byte (ValueError).
_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


def file_type(path: bytes, *, follow: bool = True) -> int:
    """The type (as ``stat.S_IFDIR``) of what is at *path*, 0 for nothing; with *follow* links lead on.

    Raises InputError for what cannot be looked at.
    """
    try:
        return stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)
    except ValueError:
        return 0
    except OSError as error:
        if error.errno in _NOTHING:
            return 0
        raise os_error(error, "cannot look at", subject=shown_path(path)) from error


def is_directory(path: bytes) -> bool:
    """Whether *path* leads to a directory. Raises InputError for what cannot be looked at."""
    return file_type(path) == stat.S_IFDIR
