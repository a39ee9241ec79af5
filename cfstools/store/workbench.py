"""Temporaries that may take the place of what is there: only for repairs, which lock the store alone."""

from __future__ import annotations

import os

from cfstools.store.base import FsVerity
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore
from cfstools.store.scratch import Scratch, Temporary
from cfstools.verity import Params


class Workbench(Scratch):
    """Named temporaries of *store*, which can share an inode with a file there and replace one."""

    def __init__(self, store: DirectoryStore, *, mode: int, fs_verity: FsVerity, params: Params) -> None:
        super().__init__(store, named=True, mode=mode, fs_verity=fs_verity, params=params)

    def adopt(self, directory: int, name: bytes) -> Temporary:
        """A temporary that shares its inode with *name* below *directory*, open for reading. Raises ``OSError``."""
        own = self._new_name()
        stage = self._stage()
        os.link(name, own, src_dir_fd=directory, dst_dir_fd=stage, follow_symlinks=False)
        try:
            return Temporary(os.open(own, OBJECT_FLAGS, dir_fd=stage), own)
        except BaseException:
            self._remove(own)
            raise

    def replace(self, temporary: Temporary, prefix: bytes, name: bytes) -> None:
        """Give a temporary its place ``prefix/name``, instead of what may be there. It is used up.

        Raises plain ``OSError``. The contents must be durable by now.
        """
        assert temporary.name is not None
        try:
            with self._store.prefix_fd(prefix, create=True) as directory:
                os.rename(temporary.name, name, src_dir_fd=self._stage_fd, dst_dir_fd=directory)
        finally:
            # Of two names of one inode a rename leaves both: removing ours is right in every case.
            self.drop(temporary)
