"""Trees to extract, and extracting them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cfstools.api.extract import ExtractOptions, ExtractReport, extract_view
from cfstools.progress import SILENT, Progress
from cfstools.store import Store, StoreChain
from cfstools.tree import Directory, Entry, RegularFile, Xattrs
from cfstools.view.nodes import View

NOBODY = 65534
UID, GID = os.geteuid(), os.getegid()


def directory(entries: dict[bytes, Entry] | None = None, *, mode: int = 0o755, mtime: int = 5) -> Directory:
    return Directory(mode=stat.S_IFDIR | mode, uid=UID, gid=GID, mtime_sec=mtime, entries=entries or {})


def file(content: bytes = b"x", *, mode: int = 0o644, xattrs: Xattrs | None = None, mtime: int = 5) -> RegularFile:
    return RegularFile(
        mode=stat.S_IFREG | mode,
        uid=UID,
        gid=GID,
        mtime_sec=mtime,
        mtime_nsec=7,
        xattrs=xattrs or {},
        size=len(content),
        content=content,
    )


def put(
    root: Directory,
    target: Path,
    *,
    store: Store | None = None,
    progress: Progress = SILENT,
    threads: int = 1,
    **options: object,
) -> ExtractReport:
    view = View(root, store or StoreChain([]))
    chosen = ExtractOptions(**options)  # type: ignore[arg-type]
    return extract_view(view, bytes(target), options=chosen, threads=threads, progress=progress)


def left_out(report: ExtractReport) -> dict[str, tuple[int, str | None]]:
    return {left.what: (left.count, left.first) for left in report.left_out}


@contextmanager
def as_nobody(*places: Path) -> Iterator[None]:
    """Without the rights of root; *places* are given away."""
    for place in places:
        os.chown(place, NOBODY, NOBODY)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


class Stop(BaseException):
    pass


def stop_after(count: int, error: BaseException) -> Progress:
    class Stopper:
        left = count

        def stage(self, name: str, total: int | None, unit: str) -> Self:
            return self

        def advance(self, amount: int) -> None:
            Stopper.left -= 1
            if Stopper.left == 0:
                raise error

        def finish(self) -> None:
            pass

    return Stopper()
