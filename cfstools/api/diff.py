"""Verb ``diff``: what changed from one tree to another, and why digests differ where trees do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from cfstools.api.build import BuildOptions
from cfstools.api.changes import ChangeReport, ChangeReports, change_kind
from cfstools.errors import UsageError, naming
from cfstools.formats.base import Format, OpenImage
from cfstools.formats.explain import Form, Reason, explain
from cfstools.formats.registry import COMPOSEFS
from cfstools.lifetime import keep_until_exit
from cfstools.progress import SILENT, Progress
from cfstools.report import Report
from cfstools.sources.oci_request import OciRequest
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading, Source, SourceKind, load
from cfstools.store.base import Store
from cfstools.store.chain import StoreChain, has_object
from cfstools.store.open import StorePlace, open_stores
from cfstools.text import shown_path
from cfstools.tree import Directory
from cfstools.tree.diff import Aspect, Change, Notes, diff_trees
from cfstools.tree.objects import objects_of
from cfstools.values import Value
from cfstools.verity import Algorithm, Params, digest_bytes, object_path

if TYPE_CHECKING:
    from cfstools.oci.registry.reference import RegistryOptions

_STDIN = b"-"


class SideReport(Report):
    """One side: what it is, and the image it is or would become with default options."""

    path: str
    kind: str
    format: str
    digest: str
    image_size: int


class DiffReport(Report):
    """What is different between ``a`` and ``b``. Sizes are in bytes.

    ``same`` is true if nothing that was not ignored differs: no change, nor the digests. ``aspects`` counts changed
    names by aspect. A client that has all of A and the objects in the stores needs ``objects_to_fetch`` of
    ``bytes_to_fetch`` and an image of ``image_to_fetch`` for B; ``objects_shared`` are needed by both.
    ``contents_unknown`` files have no digest on either side and ``contents_incomparable`` have those of two algorithms,
    so that only sizes were compared. ``reasons`` say why digests differ. ``changes`` are made one by one as they are
    looked at.
    """

    same: bool
    a: SideReport
    b: SideReport
    added: int
    removed: int
    changed: int
    aspects: dict[str, int]
    objects_shared: int
    objects_to_fetch: int
    bytes_to_fetch: int
    image_to_fetch: int
    contents_unknown: int
    contents_incomparable: int
    ignored: tuple[str, ...]
    reasons: tuple[Reason, ...]
    changes: Sequence[ChangeReport]


class DiffOptions(Value):
    """What counts as a difference, and how sides that are not images are read.

    ``algorithm`` is that of digests of sources that are not images; ``None`` means that of the other side if this is
    an image. ``ignore`` are aspects that do not matter; with any of them, or with ``ignore_format``, the digests of
    the two images do not matter either.
    """

    algorithm: Algorithm | None = None
    ignore: frozenset[Aspect] = frozenset()
    ignore_format: bool = False

    @property
    def compares_digests(self) -> bool:
        """Whether sides with different digests are different although their trees agree."""
        return not self.ignore and not self.ignore_format


def diff(
    a: bytes,
    b: bytes,
    *,
    stores: Sequence[StorePlace] = (),
    options: DiffOptions | None = None,
    format: Format = COMPOSEFS,
    threads: int = 1,
    stdin: BinaryIO | None = None,
    registries: RegistryOptions | None = None,
    progress: Progress = SILENT,
) -> DiffReport:
    """Compare *a* and *b*, each an image or any source that ``build`` takes; *stdin* is what one ``-`` stands for.

    A side that is no image is compared as the image in *format* that it would become. *registries* are the options for
    sides that are in registries.

    Files of directories and container images are digested. Objects that *stores* have need not be fetched, and where
    the sides name contents by different algorithms, or one names no digest, these objects are read and compared. Raises
    InputError, SourceChanged, FormatError, TreeError and UsageError, naming the side; StoreError, and CheckFailed for
    an object that is damaged.
    """
    options = options or DiffOptions()
    if a == b == _STDIN:
        raise UsageError("only one side can be standard input")
    with ExitStack() as stack:
        held = stack.enter_context(open_stores(stores))
        sources = [stack.enter_context(recognise(path)) for path in (a, b)]
        sides = list(zip((a, b), "AB", sources, strict=True))
        opened = [_open_image(stack, path, name, source) for path, name, source in sides]
        found = (side.algorithm for side in opened if side is not None and side.algorithm is not None)
        reading = Reading(
            algorithm=options.algorithm or next(found, Algorithm.SHA256),
            oci=OciRequest(registries=registries),
            stdin=stdin,
            progress=progress,
        )
        old, new = (
            side.settled(reading.algorithm or Algorithm.SHA256)
            if side
            else _read(path, name, source, reading, format, threads=threads)
            for side, (path, name, source) in zip(opened, sides, strict=True)
        )
        keep_until_exit((old, new))
        trees = _comparable(old.form, new.form, held, threads=threads, progress=progress)
        return _compare(old, new, options, trees, held)


class _Side(Value):
    form: Form
    report: SideReport


class _ImageSide(Value):
    """An image that was read; without objects it leaves open which algorithm it is of."""

    path: bytes
    name: str
    root: Directory
    image: OpenImage
    data: memoryview

    @property
    def algorithm(self) -> Algorithm | None:
        return self.image.algorithm

    def settled(self, default: Algorithm) -> _Side:
        algorithm = self.algorithm or default
        digest = digest_bytes(self.data, Params(algorithm=algorithm))
        form = Form(
            name=self.name,
            root=self.root,
            version=self.image.version,
            algorithm=algorithm,
            data=self.data,
            format=self.image.format,
        )
        report = _side_report(self.path, "image", self.image.word(algorithm), digest, len(self.data))
        return _Side(form=form, report=report)


def _open_image(stack: ExitStack, path: bytes, name: str, source: Source) -> _ImageSide | None:
    """The image *source*, open until *stack* is left; ``None`` for what is none."""
    if source.kind is not SourceKind.IMAGE:
        return None
    tree = stack.enter_context(source.open(Reading(algorithm=None, as_written=True)))
    assert tree.opened is not None
    assert tree.data is not None
    return _ImageSide(path=path, name=name, root=tree.root, image=tree.opened, data=tree.data)


def _read(path: bytes, name: str, source: Source, reading: Reading, format: Format, *, threads: int) -> _Side:
    """A source that is no image, and the image it would become."""
    tree = load(source, reading, threads=threads)
    options = BuildOptions(algorithm=reading.algorithm or Algorithm.SHA256).plan_options(source.kind)
    with naming(path):
        plan = format.plan(tree.root, options)
    form = Form(name=name, root=tree.root, version=plan.version, algorithm=options.algorithm, format=format)
    digest = plan.digest(Params(algorithm=options.algorithm))
    return _Side(form=form, report=_side_report(path, tree.name, plan.word, digest, plan.size))


def _side_report(path: bytes, kind: str, word: str, digest: bytes, size: int) -> SideReport:
    return SideReport(
        path=shown_path(path),
        kind=kind,
        format=word,
        digest=digest.hex(),
        image_size=size,
    )


def _comparable(
    old: Form, new: Form, stores: Sequence[Store], *, threads: int, progress: Progress
) -> tuple[Directory, Directory]:
    """Both trees, with digests of one algorithm as far as *stores* have the objects."""
    if not stores:
        return old.root, new.root
    from cfstools.view.nodes import View
    from cfstools.view.rehash import count_missing, rehash

    views = [View(form.root, StoreChain(stores)) for form in (old, new)]
    # The stores may have the objects by the digests of one side only: those are read.
    algorithm = min(
        (new.algorithm, old.algorithm), key=lambda algorithm: sum(count_missing(view, algorithm) for view in views)
    )
    before, after = (rehash(view, algorithm, threads=threads, progress=progress) for view in views)
    return before, after


def _compare(
    old: _Side, new: _Side, options: DiffOptions, trees: tuple[Directory, Directory], stores: Sequence[Store]
) -> DiffReport:
    notes = Notes()
    changes: list[Change] = []
    reasons: list[Reason] = []
    alike = old.report.digest == new.report.digest
    if not alike:  # equal digests leave nothing to look for
        changes = list(diff_trees(*trees, ignore=options.ignore, notes=notes))
        if options.compares_digests:
            reasons = explain(old.form, new.form, changes, notes)
    had, needed = objects_of(old.form.root), objects_of(new.form.root)
    fetched = {name: size for name, size in needed.items() if name not in had}
    missing = [size for name, size in fetched.items() if not _holds(stores, name, size)]
    kinds = Counter(map(change_kind, changes))
    aspects = Counter(aspect for change in changes for aspect in change.aspects)
    return DiffReport(
        same=not changes and (alike or not options.compares_digests),
        a=old.report,
        b=new.report,
        added=kinds["added"],
        removed=kinds["removed"],
        changed=kinds["changed"],
        aspects={aspect.value: aspects[aspect] for aspect in Aspect if aspect in aspects},
        objects_shared=len(needed) - len(fetched),
        objects_to_fetch=len(missing),
        bytes_to_fetch=sum(missing),
        image_to_fetch=0 if alike else new.report.image_size,
        contents_unknown=notes.unknown,
        contents_incomparable=notes.incomparable,
        ignored=_ignored(options),
        reasons=tuple(reasons),
        changes=ChangeReports(changes),
    )


def _holds(stores: Sequence[Store], name: bytes, size: int) -> bool:
    """Whether one of *stores* has an object of *size* bytes, named by its digest or by a path."""
    is_digest = len(name) in {algorithm.digest_size for algorithm in Algorithm}
    return has_object(stores, object_path(name) if is_digest else name, size)


def _ignored(options: DiffOptions) -> tuple[str, ...]:
    names = [aspect.value for aspect in Aspect if aspect in options.ignore]
    return (*names, "format") if options.ignore_format else tuple(names)
