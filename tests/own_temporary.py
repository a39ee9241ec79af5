"""A temporary directory for each run of the suite, instead of one for all runs of a user.

The shared one is closed to other users whenever a run starts, and so are then the files of tests that act as another
user in a run that goes on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import pytest

_PREFIX = "cfstools-tests-"
_KEPT = 1  # of the runs that ended, for a look at what failed


def claim(config: pytest.Config) -> Path:
    """Return a path for the files of this run, and remove those of earlier runs but the last."""
    _remove_ended()
    place = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    config.add_cleanup(lambda: os.close(lock))
    return place / "run"


def _remove_ended() -> None:
    found = [path for path in Path(tempfile.gettempdir()).glob(_PREFIX + "*") if _is_ours(path)]
    for path in sorted(found, key=_age)[_KEPT:]:
        _remove_unless_running(path)


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid() and path.is_dir() and not path.is_symlink()
    except OSError:
        return False


def _age(path: Path) -> float:
    try:
        return -path.lstat().st_mtime
    except OSError:
        return 0


def _remove_unless_running(path: Path) -> None:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
