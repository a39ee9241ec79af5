"""Verb ``extract``: the tree of an image back on disk, its contents checked on the way."""

from __future__ import annotations

from collections.abc import Sequence

from cfstools.errors import naming
from cfstools.formats.escape import escape_text
from cfstools.output.directories import output_directory
from cfstools.progress import SILENT, Progress, running_stage
from cfstools.report import LeftOut, Report
from cfstools.sources.image_file import load_image
from cfstools.store.chain import StoreChain
from cfstools.store.open import StorePlace
from cfstools.store.write.keeping import open_and_keep
from cfstools.text import shown_path
from cfstools.view.disk import Extraction, content_total
from cfstools.view.disk_inodes import CopyMode, InodeOptions, InodeWriter
from cfstools.view.nodes import View

__all__ = ["CopyMode", "ExtractOptions", "ExtractReport", "LeftOut", "extract", "extract_view"]


class ExtractOptions(InodeOptions):
    """What is put on disk, and how.

    Of ``paths`` (all without any) everything below is extracted, and the directories that lead to it. With ``sync``
    the tree is on stable storage before it gets its name. ``shared`` lets root extract where others may write.
    """

    paths: tuple[bytes, ...] = ()
    sync: bool = False
    shared: bool = False


class ExtractReport(Report):
    """What an extraction made. Files are counted by inode, ``hard_links`` are the other names of their inodes.

    The bytes are those of file contents: ``bytes_copied`` were written, ``bytes_cloned`` share storage with objects,
    ``bytes_linked`` are objects themselves.
    """

    directory: str
    directories: int
    files: int
    symlinks: int
    special_files: int
    hard_links: int
    bytes_copied: int
    bytes_cloned: int
    bytes_linked: int
    left_out: tuple[LeftOut, ...]


def extract(
    image: bytes,
    directory: bytes,
    *,
    stores: Sequence[StorePlace] = (),
    options: ExtractOptions | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Put the tree of the image at *image* into the new (or empty) *directory*, with contents from *stores*.

    See :func:`extract_view`. Raises also ImageError.
    """
    with naming(image), open_and_keep(stores) as opened:
        view = View(load_image(image), StoreChain(opened))
        return extract_view(view, directory, options=options, threads=threads, progress=progress)


def extract_view(
    view: View,
    directory: bytes,
    *,
    options: ExtractOptions | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> ExtractReport:
    """Put the tree of *view* into the new (or empty) *directory*.

    It appears once it is whole; after an error nothing is left, or a note at the error says what. Nothing is ever
    written outside of it; as root, *directory* must be where nobody else may write, unless ``options.shared``. Root
    gets the tree as it is, and an error for what cannot be; anybody else gets what they can hold, and the report says
    what was left out. Raises CheckFailed for contents that are not what the image says, InputError for what cannot be
    written and paths that are not there, StoreError, Unsupported (for ``REFLINK``), ImageError and LimitExceeded for
    names no directory can have.
    """
    options = options or ExtractOptions()
    view = view.only(options.paths)
    with (
        output_directory(directory, sync=options.sync, shared=options.shared) as top,
        running_stage(progress, "extract", content_total(view), "B") as stage,
    ):
        tally = Extraction(view, directory, top, InodeWriter(view, options, stage)).run(threads)
    done = tally.done
    return ExtractReport(
        directory=shown_path(directory),
        directories=done["directories"],
        files=done["files"],
        symlinks=done["symlinks"],
        special_files=done["special_files"],
        hard_links=done["hard_links"],
        bytes_copied=done["bytes_copied"],
        bytes_cloned=done["bytes_cloned"],
        bytes_linked=done["bytes_linked"],
        left_out=tuple(
            LeftOut(what=what, count=count, first=escape_text(first)) for what, (count, first) in tally.left_out.items()
        ),
    )
