"""What makes an image wrong as a composefs image, besides the rules of EROFS (composefs format, section 10.2).

These rules are about what overlayfs will do with the image: which object a file's contents come from, and which
names are hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cfstools.errors import ImageError
from cfstools.formats.composefs import ACL_KEYS, ESCAPED, METACOPY_KEY, OPAQUE_KEY, OVERLAY, REDIRECT_KEY
from cfstools.formats.composefs_reader import parse_metacopy, parse_redirect
from cfstools.formats.erofs import layout as fmt
from cfstools.formats.erofs.check import Finding, Severity, check_image
from cfstools.formats.erofs.reader import Image, Xattr
from cfstools.formats.erofs.walk import Step
from cfstools.formats.escape import escape
from cfstools.verity import Algorithm

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HIDING_NAMES = frozenset(b"%02x" % number for number in range(256))


def check_composefs(data: Buffer, *, allow_tail: bool = False, strict: bool = False) -> list[Finding]:
    """All problems of a composefs image, those of :func:`~cfstools.formats.erofs.check.check_image` among them.

    An image without a finding of severity ERROR can be read by
    :func:`~cfstools.formats.composefs_reader.read_image`.
    """
    rules = _Rules()
    findings = check_image(data, allow_tail=allow_tail, strict=strict, rules=rules)
    if all(finding.severity is not Severity.ERROR for finding in findings):
        flag = bool(Image(data, allow_tail=allow_tail).header.flags & fmt.HEADER_FLAG_HAS_ACL)
        if flag != rules.has_acl:
            what = f"the flag for ACLs is {int(flag)}, but there are {'some' if rules.has_acl else 'none'}"
            findings.append(Finding(severity=Severity.ERROR, what=what, where="composefs header at offset 0x0"))
    return findings


class _Rules:
    """Called for each inode; remembers what must be the same everywhere in an image."""

    def __init__(self) -> None:
        self.has_acl = False
        self._algorithm: Algorithm | None = None

    def __call__(self, step: Step, xattrs: Sequence[Xattr]) -> Iterator[str]:
        values = {key: value for key, value, _ in xattrs}
        self.has_acl = self.has_acl or not ACL_KEYS.isdisjoint(values)
        inode = step.inode
        if inode.is_hiding and (step.depth != 1 or step.name not in _HIDING_NAMES):
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
                yield f"overlayfs would act on {escape(key).decode('ascii')}, which has no place here"

    def _check_object(self, step: Step, values: dict[bytes, bytes]) -> Iterator[str]:
        """Where the contents of an external file come from."""
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
            yield f"the redirect {escape(redirect).decode('ascii')} has an empty component, which the kernel refuses"
        if algorithm is not None:
            self._algorithm = self._algorithm or algorithm
            if algorithm is not self._algorithm:
                yield f"digest of {algorithm.value} in an image with digests of {self._algorithm.value}"
