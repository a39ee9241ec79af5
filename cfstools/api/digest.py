"""Verb ``digest``: fs-verity digests of ordinary files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import Report
from cfstools.verity import DEFAULT, Params
from cfstools.verity.files import digest_file


class FileDigest(Report):
    """The digest of one file; ``path`` is as it was given."""

    path: bytes
    algorithm: str
    digest: bytes


def digest(
    paths: Iterable[bytes], *, params: Params = DEFAULT, threads: int = 1, progress: Progress = SILENT
) -> Iterator[FileDigest]:
    """Compute the fs-verity digest of each file, one after the other. Raises InputError naming the file.

    A large file is hashed by *threads* at once.
    """
    with running_stage(progress, "digest", None, "B") as stage:
        for path in paths:
            yield FileDigest(
                path=path,
                algorithm=params.algorithm.value,
                digest=digest_file(path, params, threads=threads, progress=stage),
            )
