"""Check a composefs image for what the rules of EROFS do not cover (composefs format, section 10.2).

These rules are about what overlayfs does with the image: from which object it takes the contents of a file, and which
names it hides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cfstools.errors import FormatError, ImageError
from cfstools.formats.base import Finding, Severity
from cfstools.formats.canonical import first_difference
from cfstools.formats.composefs.overlay_xattrs import ACL_KEYS, ESCAPED, METACOPY_KEY, OPAQUE_KEY, OVERLAY, REDIRECT_KEY
from cfstools.formats.composefs.reader import NativeTree, parse_metacopy, parse_redirect
from cfstools.formats.composefs.writer import plan_image
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.reader import Image, Xattr
from cfstools.formats.erofs.walk import Step
from cfstools.formats.escape import escape_text
from cfstools.tree import Directory, HardLink, Leaf
from cfstools.tree.walk import iter_names
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HIDING_NAMES = frozenset(b"%02x" % number for number in range(256))


def check_every_rule(data: Buffer, *, allow_tail: bool = False) -> list[Finding]:
    """All problems of a composefs image, those of :func:`~cfstools.formats.erofs.check.check_image` among them.

    An image without a finding of severity ERROR can be read by :class:`~cfstools.formats.composefs.reader.TreeReader`.
    """
    from cfstools.formats.erofs.check import check_image  # noqa: PLC0415 - few images need it

    rules = _Rules()
    findings = check_image(data, allow_tail=allow_tail, rules=rules)
    if all(finding.severity is not Severity.ERROR for finding in findings):
        flag = bool(Image(data, allow_tail=allow_tail).header.flags & fmt.HEADER_FLAG_HAS_ACL)
        if flag != rules.has_acl:
            what = f"the flag for ACLs is {int(flag)}, but there are {'some' if rules.has_acl else 'none'}"
            findings.append(Finding(severity=Severity.ERROR, what=what, where="composefs header at offset 0x0"))
    return findings


def matches_canonical(image: Image, tree: NativeTree) -> bool:
    """Whether *image* is what our writer makes of its *tree*, byte for byte; then no rule is broken.

    The native reader declines everything that these rules forbid although a writer would write it, except wrong link
    counts of files, which are checked here.
    """
    if tree.linked and not _links_agree(tree.root):
        return False
    version = image.header.composefs_version
    algorithm = tree.algorithm or Algorithm.SHA256
    try:
        plan = plan_image(tree.root, min_version=version, max_version=version, algorithm=algorithm)
    except FormatError:
        return False
    return first_difference(plan, image.data[: image.length]) is None


def _links_agree(root: Directory) -> bool:
    """Whether every file has as many names as its link count says."""
    names: Counter[Leaf] = Counter()
    for _, _, entry in iter_names(root):
        if isinstance(entry, HardLink):
            names[entry.inode] += 1
        elif not isinstance(entry, Directory) and entry.nlink != 1:
            names[entry] += 1
    return all(count == inode.nlink for inode, count in names.items())


class _Rules:
    """The rules for one inode; remembers the digest algorithm, which must be the same in all of the image."""

    def __init__(self) -> None:
        self.has_acl = False
        self._algorithm: Algorithm | None = None

    def __call__(self, step: Step, xattrs: Sequence[Xattr]) -> Iterator[str]:
        values = {key: value for key, value, _ in xattrs}
        self.has_acl = self.has_acl or not ACL_KEYS.isdisjoint(values)
        inode = step.inode
        if inode.is_masking and (step.depth != 1 or step.name not in _HIDING_NAMES):
            yield "a character device 0:0 that hides a name, other than 00 to ff in the root"
        allowed: tuple[bytes, ...] = ()
        if not step.depth:
            allowed = (OPAQUE_KEY,)
            if values.get(OPAQUE_KEY) != b"y":
                yield "the root is not opaque"
        elif inode.is_chunked:
            allowed = (METACOPY_KEY, REDIRECT_KEY)
            yield from self._check_object(step, values)
        for key in values:
            if key.startswith(OVERLAY) and not key.startswith(ESCAPED) and key not in allowed:
                yield f"overlayfs would act on {escape_text(key)}, which is not allowed here"

    def _check_object(self, step: Step, values: dict[bytes, bytes]) -> Iterator[str]:
        """Check where the contents of an external file come from."""
        metacopy = values.get(METACOPY_KEY)
        redirect = values.get(REDIRECT_KEY)
        try:
            if metacopy is None:
                raise ImageError("the contents are not in the image and no object is named")
            algorithm, _ = parse_metacopy(metacopy, step.inode)
            parse_redirect(redirect, step.inode)
        except ImageError as error:
            yield error.what
            return
        if redirect is not None and (b"//" in redirect or redirect.endswith(b"/")):
            yield f"the redirect {escape_text(redirect)} has an empty component, which the kernel refuses"
        if algorithm is not None:
            self._algorithm = self._algorithm or algorithm
            if algorithm is not self._algorithm:
                yield f"digest of {algorithm.value} in an image with digests of {self._algorithm.value}"
