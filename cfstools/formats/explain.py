"""Why two images differ whose trees do not, or only in what is easily overlooked.

Between equal trees only rules of the format decide: which version, which algorithm, what of times and links is kept,
what is put into the image; or one of the images was not made as the rules say (composefs format, sections 1 to 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from cfstools.errors import FormatError
from cfstools.formats.base import Format, PlanOptions
from cfstools.formats.erofs.places import first_difference, place_of
from cfstools.formats.erofs.reader import Image, Xattr
from cfstools.formats.erofs.regions import RegionKind
from cfstools.formats.erofs.walk import Walk
from cfstools.formats.escape import escape_text
from cfstools.formats.overlay import OPAQUE_KEY
from cfstools.formats.registry import COMPOSEFS
from cfstools.report import Report
from cfstools.text import counted
from cfstools.tree import NO_XATTRS, Device, Directory, HardLink
from cfstools.tree.copying import copy_tree
from cfstools.tree.diff import Aspect, Change, Notes
from cfstools.tree.filters import split_hardlinks
from cfstools.tree.links import settle_links
from cfstools.tree.walk import iter_directories, iter_entries, iter_inodes
from cfstools.values import Value
from cfstools.verity import Algorithm


class Rule(Enum):
    """A rule or a choice that decides bytes of an image; the value is its name in reports."""

    FORMAT = "image format"
    VERSION = "format version"
    ALGORITHM = "hash algorithm"
    NANOSECONDS = "mtime nanoseconds"
    LINKS = "hard links"
    INLINE = "inline contents"
    XATTR_ORDER = "xattr order"
    XATTR_SHARING = "xattr sharing"
    PADDING = "padding"
    WRITER = "non-canonical writer"
    OTHER = "something else"


class Reason(Report):
    """One reason why digests differ: the rule, and what each side does about it."""

    rule: Rule
    what: str


class Form(Value):
    """One side: its tree, and the image it is or would become.

    ``data`` are the bytes of an image, without anything appended; ``None`` for other sources, which are taken to be
    written as the rules say. ``format`` is that of the image.
    """

    name: str
    root: Directory
    version: int
    algorithm: Algorithm
    data: memoryview | None = None
    format: Format = COMPOSEFS

    def written(self, root: Directory | None = None, version: int | None = None) -> bytes:
        """The image a canonical writer makes of the tree, or of another *root* or *version*. Raises TreeError."""
        version = self.version if version is None else version
        tree = self.root if root is None else root
        return b"".join(self.format.plan(tree, PlanOptions(self.algorithm, version, version)).chunks())


# As a reader gives them back: of PARENT_MARKS_V1, what it does not drop.
_VERSION_MARKS = frozenset({(OPAQUE_KEY, b"x"), (b"user.overlay.opaque", b"x")})
_SUBTLE = frozenset({Aspect.MTIME, Aspect.LINKS})


def is_subtle(change: Change) -> bool:
    """Whether a change is one of links or of nanoseconds only."""
    if change.old is None or change.new is None:
        return False
    if Aspect.MTIME in change.aspects and change.old.mtime_sec != change.new.mtime_sec:
        return False
    return _SUBTLE.issuperset(change.aspects)


def explain(a: Form, b: Form, changes: Sequence[Change], notes: Notes) -> list[Reason]:
    """Why the images of *a* and *b* differ, given what :func:`~cfstools.tree.diff.diff_trees` found and noted.

    Trees that differ in earnest explain their digests; then only version and algorithm are looked at. Otherwise each
    image is compared with what a canonical writer makes of its tree, and where the reasons found are not enough to
    make both the same, that is a reason too. Trees are written several times over.
    """
    reasons = list(_choices(a, b, notes))
    if not all(map(is_subtle, changes)):
        return reasons
    reasons += _subtleties(changes, notes)
    if not any(Aspect.LINKS in change.aspects for change in changes):
        reasons += _primaries(a, b)
    if not a.format is b.format is COMPOSEFS:
        return reasons
    known = {reason.rule for reason in reasons}
    for form in (a, b):
        reasons += _writer(form)
    if known.isdisjoint({Rule.ALGORITHM, Rule.INLINE}):
        reasons += _remainder(a, b, changes)
    return reasons


def drop_version_marks(root: Directory) -> None:
    """Take from the tree of a version 1 image what that version adds to directories that hold whiteouts.

    A reader cannot tell these marks from attributes of the tree (composefs format, sections 4.6 and 6.5); written as
    version 1 again the tree gets them back.
    """
    for directory in iter_directories(root):
        if not directory.xattrs or not any(
            type(entry) is Device and entry.is_whiteout for entry in directory.entries.values()
        ):
            continue
        kept = {key: value for key, value in directory.xattrs.items() if (key, value) not in _VERSION_MARKS}
        directory.xattrs = kept or NO_XATTRS


def _choices(a: Form, b: Form, notes: Notes) -> Iterator[Reason]:
    if a.format is not b.format:
        what = f"{_is(a)} in the format {a.format.name}, {_is(b)} in {b.format.name}"
        yield Reason(rule=Rule.FORMAT, what=what)
    elif a.version != b.version:
        what = f"{_is(a)} version {a.version}, {_is(b)} version {b.version}"
        yield Reason(rule=Rule.VERSION, what=what)
    if a.algorithm is not b.algorithm:
        what = f"{a.name} has {a.algorithm.value}, {b.name} has {b.algorithm.value}"
        if notes.incomparable:
            what += f"; of {counted(notes.incomparable, 'file')} only the sizes could be compared"
        yield Reason(rule=Rule.ALGORITHM, what=what)


def _subtleties(changes: Sequence[Change], notes: Notes) -> Iterator[Reason]:
    times = [change for change in changes if Aspect.MTIME in change.aspects]
    if times:
        old, new = times[0].old, times[0].new
        assert old is not None
        assert new is not None
        example = f"{escape_text(times[0].path)} has .{old.mtime_nsec:09d} in A, .{new.mtime_nsec:09d} in B"
        yield Reason(rule=Rule.NANOSECONDS, what=f"{counted(len(times), 'mtime')} differ only there: {example}")
    links = [change for change in changes if Aspect.LINKS in change.aspects]
    if links:
        yield Reason(rule=Rule.LINKS, what=f"{counted(len(links), 'name')} linked otherwise: {_link_text(links[0])}")
    if notes.moved:
        what = f"{counted(notes.moved, 'file')} with contents in one image and as an object of the other"
        yield Reason(rule=Rule.INLINE, what=f"{what}: {escape_text(notes.first_moved or b'')}")


def _link_text(change: Change) -> str:
    path = escape_text(change.path)
    sides = (change.old_link, change.new_link)
    if sides == (None, None):
        assert change.old is not None
        assert change.new is not None
        return f"{path} has link count {change.old.nlink} in A, {change.new.nlink} in B"
    words = [
        f"a link to {escape_text(link)} in {name}" if link is not None else f"an inode of its own in {name}"
        for link, name in zip(sides, "AB", strict=True)
    ]
    return f"{path} is {words[0]}, {words[1]}"


def _primaries(a: Form, b: Form) -> Iterator[Reason]:
    """Names that carry the inode in one tree and are a further name in the other: inodes then lie elsewhere."""
    count = 0
    first = b""
    for (path, _, one), (other_path, _, other) in zip(iter_entries(a.root), iter_entries(b.root), strict=False):
        if path != other_path:
            return
        if isinstance(one, HardLink) and not isinstance(other, HardLink | Directory):
            count += 1
            first = first or path
    if count:
        example = f"{escape_text(first)} is a further name in A but not in B"
        yield Reason(rule=Rule.LINKS, what=f"{counted(count, 'inode')} carried by another name: {example}")


def _writer(form: Form) -> Iterator[Reason]:
    """What is wrong with an image as the work of a writer."""
    if form.data is None:
        return
    try:
        canonical = memoryview(form.written())
    except FormatError as error:
        yield Reason(rule=Rule.WRITER, what=f"no writer makes {form.name}: {error}")
        return
    offset = first_difference(form.data, canonical)
    if offset is None:
        return
    yield from _xattr_storage(form.name, form.data, canonical)
    place = place_of(form.data, offset)
    if place.kind is RegionKind.UNKNOWN:
        what = f"{form.name} has bytes that belong to nothing and are not zero, the first at {offset:#x}"
        yield Reason(rule=Rule.PADDING, what=what)
    else:
        what = f"{form.name} is not what a canonical writer makes of its tree; first difference at {place.text}"
        yield Reason(rule=Rule.WRITER, what=what)


def _xattr_storage(name: str, stored: memoryview, canonical: memoryview) -> Iterator[Reason]:
    """Inodes that store the right xattrs in another order, or at another place, than a canonical writer."""
    orders: list[str] = []
    places: list[str] = []
    image, model = Image(stored), Image(canonical)
    walk, model_walk = Walk(image), Walk(model)
    for step, expected in zip(walk, model_walk, strict=False):
        if step.name != expected.name:
            return
        have, want = image.xattrs(step.inode), model.xattrs(expected.inode)
        if have == want or not step.first:
            continue
        if sorted(have) == sorted(want):
            orders.append(f"{walk.path()} has {_keys(have)} instead of {_keys(want)}")
        elif sorted(pair[:2] for pair in have) == sorted(pair[:2] for pair in want):
            places.append(walk.path())
    if orders:
        what = f"{counted(len(orders), 'inode')} of {name} in another order than a canonical writer's: {orders[0]}"
        yield Reason(rule=Rule.XATTR_ORDER, what=what)
    if places:
        what = f"{counted(len(places), 'inode')} of {name} with other xattrs in the shared table: {places[0]}"
        yield Reason(rule=Rule.XATTR_SHARING, what=what)


def _keys(xattrs: Sequence[Xattr]) -> str:
    return ", ".join(escape_text(key) for key, _, _ in xattrs)


def _remainder(a: Form, b: Form, changes: Sequence[Change]) -> Iterator[Reason]:
    """Something else, if both trees with the known differences taken out still give two images."""
    aspects = {aspect for change in changes for aspect in change.aspects}
    try:
        one, other = (
            memoryview(form.written(_without(form.root, aspects), version=max(a.version, b.version))) for form in (a, b)
        )
    except FormatError:
        return  # said by _writer already
    offset = first_difference(one, other)
    if offset is not None:
        what = f"the images of both trees also differ at {place_of(one, offset).text}"
        yield Reason(rule=Rule.OTHER, what=what)


def _without(root: Directory, aspects: set[Aspect]) -> Directory:
    """A copy of the tree with the first name of an inode as the primary one, and without what *aspects* are about."""
    root = copy_tree(root)
    if Aspect.MTIME in aspects:
        for inode in iter_inodes(root):
            inode.mtime_nsec = 0
    if Aspect.LINKS in aspects:
        split_hardlinks(root)
    else:
        settle_links(root)
    return root


def _is(form: Form) -> str:
    return f"{form.name} is" if form.data is not None else f"{form.name} would be"
