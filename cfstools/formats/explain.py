"""Why two images differ although their trees do not, or only in details that are easily overlooked.

For equal trees the format decides the bytes: its version, the algorithm, precision of times, hard links, which contents
are inline. Or one image was not made by the rules. What only one format knows, such as where extended attributes are
stored, it explains itself: :meth:`~cfstools.formats.base.Format.explain`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from cfstools.errors import FormatError
from cfstools.formats.base import Format, ImagePlan, PlanOptions
from cfstools.formats.canonical import first_difference
from cfstools.formats.escape import escape_text
from cfstools.report import Report
from cfstools.text import counted
from cfstools.tree import Directory, HardLink
from cfstools.tree.copying import copy_tree, settle_links
from cfstools.tree.diff import Aspect, Change, Notes
from cfstools.tree.filters import split_hardlinks
from cfstools.tree.walk import iter_entries, iter_inodes
from cfstools.values import Value
from cfstools.verity import Algorithm


class Rule(Enum):
    """A rule or an option that decides bytes of an image; the value is its name in reports."""

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
    """One reason why digests differ: the rule, and how each side applies it."""

    rule: Rule
    what: str


class Form(Value):
    """One side: its tree, and the image of some ``format`` that it is or would become.

    ``data`` are the bytes of an image, without anything appended; ``None`` for other sources, whose image would be
    canonical.
    """

    name: str
    root: Directory
    version: int
    algorithm: Algorithm
    format: Format
    data: memoryview | None = None

    def plan(self, root: Directory | None = None, version: int | None = None) -> ImagePlan:
        """The image a canonical writer makes of the tree, or of another *root* or *version*. Raises TreeError."""
        version = self.version if version is None else version
        tree = self.root if root is None else root
        return self.format.plan(tree, PlanOptions(algorithm=self.algorithm, min_version=version, max_version=version))


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

    If the trees differ in more than details, that explains the digests, and only version and algorithm are compared.
    Otherwise each image is compared with what a canonical writer makes of its tree; if both trees without the known
    differences still give different images, that is reported too. This encodes each tree up to three times.
    """
    reasons = list(_options(a, b, notes))
    if not all(map(is_subtle, changes)):
        return reasons
    reasons += _subtleties(changes, notes)
    if not any(Aspect.LINKS in change.aspects for change in changes):
        reasons += _primaries(a, b)
    known = {reason.rule for reason in reasons}
    for form in (a, b):
        reasons += _writer(form)
    if known.isdisjoint({Rule.FORMAT, Rule.ALGORITHM, Rule.INLINE}):
        reasons += _remainder(a, b, changes)
    return reasons


def _options(a: Form, b: Form, notes: Notes) -> Iterator[Reason]:
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
        yield Reason(rule=Rule.LINKS, what=f"{counted(len(links), 'name')} linked differently: {_link_text(links[0])}")
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
    """Inodes with another primary name in the other tree, which puts them at another place."""
    count = 0
    first = b""
    for (path, _, one), (other_path, _, other) in zip(iter_entries(a.root), iter_entries(b.root), strict=False):
        if path != other_path:
            return
        if isinstance(one, HardLink) and not isinstance(other, HardLink | Directory):
            count += 1
            first = first or path
    if count:
        example = f"{escape_text(first)} is primary in B but not in A"
        yield Reason(rule=Rule.LINKS, what=f"{counted(count, 'inode')} with another primary name: {example}")


def _writer(form: Form) -> Iterator[Reason]:
    """Why an image is not what a canonical writer makes of its tree."""
    if form.data is None:
        return
    try:
        plan = form.plan()
    except FormatError as error:
        yield Reason(rule=Rule.WRITER, what=f"no writer makes {form.name}: {error}")
        return
    offset = first_difference(plan, form.data)
    if offset is None:
        return
    reasons = list(form.format.explain(form.name, form.data, memoryview(b"".join(plan.chunks()))))
    yield from reasons
    if all(reason.rule is not Rule.PADDING for reason in reasons):
        role = form.format.role_at(form.data, offset)
        what = f"{form.name} is not what a canonical writer makes of its tree; first difference at {role}"
        yield Reason(rule=Rule.WRITER, what=what)


def _remainder(a: Form, b: Form, changes: Sequence[Change]) -> Iterator[Reason]:
    """A last reason, if the trees without their known differences still give different images."""
    aspects = {aspect for change in changes for aspect in change.aspects}
    version = max(a.version, b.version)
    try:
        one, other = (form.plan(_without(form.root, aspects), version) for form in (a, b))
    except FormatError:
        return  # reported by _writer
    image = memoryview(b"".join(one.chunks()))
    offset = first_difference(other, image)
    if offset is not None:
        what = f"the images of both trees also differ at {a.format.role_at(image, offset)}"
        yield Reason(rule=Rule.OTHER, what=what)


def _without(root: Directory, aspects: set[Aspect]) -> Directory:
    """A copy of the tree without differences in *aspects*; the first name of each inode is the primary one."""
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
