"""``mount.mkcfs``: what mount(8) calls for ``mount -t mkcfs`` and for lines of fstab(5).

It is this command under another name, a link that packages put into /sbin. Its words are those of mount(8), which are
turned into those of ``mkcfs mount`` (docs/mount.md, "mount.mkcfs and fstab").
"""

from __future__ import annotations

import getopt
import os
from collections.abc import Sequence

from cfstools.errors import UsageError, os_error

NAME = "mount.mkcfs"
_SYNOPSIS = "mount.mkcfs SPEC DIR [-fnsv] [-N NAMESPACE] [-o OPTIONS] [-t mkcfs[.METHOD]]"


def arguments_of(words: Sequence[str]) -> list[str]:
    """The arguments of ``mkcfs`` that do what mount(8) asks with *words*. Enters the mount namespace that they name.

    Raises UsageError for other words, InputError for a namespace that cannot be entered.
    """
    try:
        options, places = getopt.gnu_getopt(list(words), "fnsvN:o:t:")
    except getopt.GetoptError as error:
        raise UsageError(str(error), subject=NAME, hint=_SYNOPSIS) from error
    if len(places) != 2:
        raise UsageError("takes what to mount and where", subject=NAME, hint=_SYNOPSIS)
    made = ["mount"]
    for name, value in options:
        match name:
            case "-f":
                made.append("--fake")
            case "-s":
                made.append("--sloppy")
            case "-v":
                made.append("--verbose")
            case "-o" if value:
                made.append(f"-o{value}")
            case "-t" if "." in value:
                made.append(f"--method={value.partition('.')[2]}")
            case "-N":
                _enter(value)
            case _:  # -n: no table of mounts is kept here; a type without a method
                pass
    return [*made, "--", *places]


def _enter(namespace: str) -> None:
    from cfstools.linux.namespaces import enter_mounts

    path = f"/proc/{namespace}/ns/mnt" if namespace.isdigit() else namespace
    here = os.getcwdb()
    try:
        enter_mounts(os.fsencode(path))
        os.chdir(here)  # entering leads to the root directory
    except OSError as error:
        raise os_error(error, "cannot enter the namespace", subject=path) from error
