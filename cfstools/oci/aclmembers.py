"""Turn the access control lists of tar members into attributes, or drop them with a warning."""

from __future__ import annotations

from collections.abc import Callable

from cfstools.errors import OciError, TarError
from cfstools.formats.tar import Member, MemberType, TarWarning
from cfstools.formats.tar.member import label
from cfstools.oci.acl import ACCESS_KEY, DEFAULT_KEY, Acl, parse_acl_text, parse_acl_value

_KEYS = {b"access": ACCESS_KEY, b"default": DEFAULT_KEY}
_NOT_KEPT = "has an access control list that is not kept"


class AclSettler:
    """Converts the lists of members, which are text or the kernel's attributes in the archive, to attributes.

    *keeps* tells whether an attribute of that name is kept. A dropped list is reported to *on_warning*; with
    *safe_modes* the member then gets a mode that gives nobody more rights than the list did.
    """

    def __init__(
        self, keeps: Callable[[bytes], bool], on_warning: Callable[[TarWarning], object], *, safe_modes: bool
    ) -> None:
        self._keeps = keeps
        self._on_warning = on_warning
        self._safe_modes = safe_modes

    def settle(self, member: Member) -> None:
        """Set the attributes and the mode of *member* by its lists.

        Raises :class:`TarError` for an invalid list that would be kept or that a safe mode would be taken from.
        """
        if member.type in {MemberType.SYMLINK, MemberType.HARDLINK}:
            return  # a symbolic link has none, and attributes in the header of a hard link are ignored
        texts = member.acls or {}
        if texts.keys() - _KEYS.keys():
            names = label(b", ".join(sorted(texts.keys() - _KEYS.keys())))
            self._warn(member, f"has an access control list of a kind Linux does not have ({names}): not kept")
        for name, key in _KEYS.items():
            if name in texts or key in member.xattrs:
                try:
                    self._settle(member, key, texts.get(name))
                except OciError as error:
                    if self._safe_modes or self._keeps(key):
                        raise TarError(str(error), where=_where(member)) from error
                    self._warn(member, f"{_NOT_KEPT} and cannot be read ({error})")

    def _settle(self, member: Member, key: bytes, text: bytes | None) -> None:
        value = member.xattrs.get(key)
        acl = None if text is None else parse_acl_text(text)
        if value is not None:
            kernel = parse_acl_value(value)
            if acl is not None and acl.is_numeric and acl != kernel:
                raise OciError("two access control lists that disagree")
            acl = kernel
        assert acl is not None
        if not self._keeps(key) or not acl.is_numeric:
            self._drop(member, key, acl)
        elif key == DEFAULT_KEY:
            if member.type is MemberType.DIR:
                member.xattrs = {**member.xattrs, key: acl.encode()}
        elif value is None:
            self._show(member, acl)
            if acl.is_extended:  # like Linux, store no list that equals the mode
                member.xattrs = {**member.xattrs, key: acl.encode()}

    def _show(self, member: Member, acl: Acl) -> None:
        """Set the mode as the kernel does for an inode that gets this list."""
        if member.mode & 0o777 not in {acl.mode, acl.mode_without_mask}:
            self._warn(member, f"mode {member.mode:04o} becomes {acl.mode:04o} by the access control list")
        member.mode = member.mode & 0o7000 | acl.mode

    def _drop(self, member: Member, key: bytes, acl: Acl) -> None:
        why = "" if acl.is_numeric else ", for it names users or groups without their numbers"
        if key == DEFAULT_KEY:
            if member.type is MemberType.DIR:
                self._warn(member, f"has a default access control list that is not kept{why}")
            return
        if not acl.is_extended:
            return
        safe = acl.safe_mode & member.mode | member.mode & 0o7000
        if self._safe_modes:
            self._warn(member, f"{_NOT_KEPT}{why}: mode {safe:04o} instead of {member.mode:04o}, so that nobody gains")
            member.mode = safe
        elif safe != member.mode:
            self._warn(
                member, f"{_NOT_KEPT}{why}: mode {member.mode:04o} gives more than the list, {safe:04o} would not"
            )
        else:
            self._warn(member, f"{_NOT_KEPT}{why}")

    def _warn(self, member: Member, what: str) -> None:
        self._on_warning(TarWarning(_where(member), what))


def _where(member: Member) -> str:
    return f"offset {member.offset:#x}/{member.offset} (member {label(member.name)})"
