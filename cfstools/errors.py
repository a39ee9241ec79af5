"""Every error this package raises on purpose, each with the exit code it ends the command with.

An error is an interface: ``str(error)`` is the one line a user sees after ``mkcfs: ``, in the form
``SUBJECT: WHERE: WHAT``. Parsers fill in *what* and *where* (a line, a field, an offset); whoever opened
the input adds the *subject* (a path) with :func:`naming`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Self

from cfstools.text import printable, shown_path, without_secrets


class Remedy:
    """What an error may advise to use, as callers of the library write it.

    The command has options and verbs instead, and spells each of these as one of them (``cfstools.cli.hints``). They
    are no ``Enum``, which would take longer to make than the rest of this module, at the start of every command.
    """

    ALLOW_DUPLICATES = "LayerRules.allow_duplicates"
    ATTACH = "attach=True"
    BUILD = "build()"
    AUTHORITIES = "NetworkOptions.authorities"
    EXTRACT = "extract()"
    FORGET = "forget"
    FORGET_MISSING = "forget_missing=True"
    FSCK = "fsck()"
    KEEP = "keep"
    KEEP_DIRS = "keep_dirs"
    LAYER_STORES = "Layers.stores"
    MAX_ENTRIES = "LayerRules.max_entries"
    MAX_RATIO = "DecompressionLimits.ratio"
    MAX_UNPACKED = "DecompressionLimits.total or TarLimits.holes"
    MAX_WINDOW = "DecompressionLimits.window"
    METHOD_FUSE = "Method.FUSE"
    MIRRORS = "mirrors"
    NO_DEVICES = "devices=False"
    NO_IMAGES = "no_images"
    NO_OWNERS = "owners=False"
    NO_XATTRS = "XattrPolicy.NONE"
    ONE_THREAD = "threads=1"
    PLAIN_HTTP = "RegistryOptions.plain_http"
    PLATFORM = "platform"
    REMOVE_SIGNATURES = "remove_signatures()"
    REQUIRE_VERITY = "VerityMode.REQUIRE"
    RUN = "run()"
    SHARED = "shared=True"
    STORES = "stores"
    STORE_PUSH = "push_objects()"
    USER_XATTRS = "XattrPolicy.USER"
    VERIFY = "verify()"


class Phrase(str):
    """Text that names remedies: for ``str`` in the words of the library, with :meth:`spelled` in those of another.

    The template has a ``{}`` for each remedy, and no text from outside.
    """

    __slots__ = ("_remedies", "_template")
    _template: str
    _remedies: tuple[str, ...]

    def __new__(cls, template: str, *remedies: str) -> Self:
        """Fill the template in the words of the library; *remedies* are attributes of :class:`Remedy`."""
        phrase = super().__new__(cls, template.format(*remedies))
        phrase._template, phrase._remedies = template, remedies
        return phrase

    def spelled(self, words: Mapping[str, str]) -> str:
        """Fill the template with the *words* for its remedies."""
        return self._template.format(*[words[remedy] for remedy in self._remedies])

    @property
    def parts(self) -> tuple[str, tuple[str, ...]]:
        """The template and its remedies, from which an equal phrase can be made."""
        return self._template, self._remedies


class CfsError(Exception):
    """Base of all deliberate errors: something failed (exit code 1).

    ``what`` says what is wrong, ``where`` the place inside the input, ``subject`` the file or object it is
    about, ``hint`` how to mend it. A hint that names a parameter or function is a :class:`Phrase`. Notes
    (``add_note``) say what else the user has to do, such as what to delete.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "failed: input or output, bad format, missing input, network"

    def __init__(
        self, what: str, *, where: str | None = None, subject: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.subject = None if subject is None else shown_path(subject)
        self.hint = hint

    def __str__(self) -> str:
        return printable(": ".join(part for part in (self.subject, self.where, self.what) if part))


class UsageError(CfsError):
    """The command or call contradicts itself (exit code 2)."""

    exit_code = 2
    meaning = "usage: unknown or contradictory options or arguments"


class CheckFailed(CfsError):
    """Something was checked and found wrong (exit code 3)."""

    exit_code = 3
    meaning = "checked and found wrong: digest, signature, structure, missing or damaged object, difference"


class SignatureInvalid(CheckFailed):
    """A signature, its envelope or what it says does not hold for the image."""


class Interrupted(CfsError):
    """The user or a signal stopped the work (exit code 130)."""

    exit_code = 130
    meaning = "interrupted"


class InputError(CfsError):
    """A file, directory or stream could not be read, written or found."""


class SourceChanged(InputError):
    """A file of the source changed or vanished while it was read."""


class NetworkError(InputError):
    """Another host or place could not be reached, refused, or gave an answer that cannot be used.

    The queries and user names of URLs, in which credentials travel, are cut from every text.
    """

    def __init__(
        self, what: str, *, where: str | None = None, subject: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(without_secrets(what), where=where, subject=subject and without_secrets(subject), hint=hint)


class TransientError(NetworkError):
    """Reading from or writing to another place failed in a way that a retry may not meet again.

    ``wait`` is how many seconds the other side asks to be left alone, if it says so; ``throttled`` whether it said
    that there are too many requests.
    """

    wait: float | None = None
    throttled = False


class AccessDenied(NetworkError):
    """Another place wants credentials, or other ones."""


class NotFound(NetworkError):
    """Another place has nothing of this name."""


class NoTls(NetworkError):
    """A server does not speak TLS where it was expected to."""


class NoRanges(NetworkError):
    """A server gives no part of something, only the whole."""


class ContentsWrong(CheckFailed):
    """What another place gave is not what was asked for."""


class StoreError(CfsError):
    """An object store could not be used as one."""


class StoreBusy(StoreError):
    """Another process uses the store, and waiting for it was not wanted."""


class ObjectMissing(StoreError):
    """An object is in none of the stores."""


class RemoteStoreError(StoreError, NetworkError):
    """A store in another place could not be reached, or refused."""


class RemoteObjectWrong(StoreError, ContentsWrong):
    """A store in another place gave other contents than those that the digest names."""


class FormatError(CfsError):
    """Input bytes break the rules of their format."""


class DumpError(FormatError):
    """A composefs-dump(5) text breaks the rules (``where`` names line and field)."""


class ImageError(FormatError):
    """An EROFS or composefs image breaks the rules (``where`` names the offset or inode)."""


class TreeError(FormatError):
    """A file system tree cannot be expressed in the format asked for (``where`` names the path)."""


class OciError(FormatError):
    """An OCI or docker image, a manifest or a layer breaks the rules (``where`` names blob, layer or path)."""


class TarError(FormatError):
    """A tar archive breaks the rules (``where`` names the offset and the member)."""


class CompressionError(FormatError):
    """Compressed bytes are damaged, cut or followed by something else (``where`` names the offset)."""


class KeyUnusable(FormatError):
    """A key or certificate cannot be read, or must not be used. The text never holds key material."""


class PassphraseNeeded(KeyUnusable):
    """A private key is encrypted and no passphrase was given."""


class LimitExceeded(FormatError):
    """Input is larger than the named maximum allows."""


class Unsupported(CfsError):
    """The kernel, the file system or a missing optional package cannot do what was asked."""


class Exhausted(CfsError):
    """This process or machine ran out of descriptors or memory.

    It says nothing about the file or object that was being looked at, so it is neither an ``InputError`` nor a
    ``StoreError``: nobody takes that for missing, unreadable or damaged because of it.
    """


_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def is_exhausted(error: OSError) -> bool:
    """Whether *error* is about this process or machine (see :class:`Exhausted`), not about what was looked at."""
    return error.errno in _EXHAUSTED


def raise_exhausted(error: OSError, what: str, subject: str | None) -> None:
    """Raise ``Exhausted`` for an error that says nothing about *subject*, also for a full disk.

    For those who would otherwise call what they look at wrong, or go on without it.
    """
    if is_exhausted(error) or error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise Exhausted(f"{what}: {error.strerror or error}", subject=subject) from error


def os_error(
    error: OSError, what: str, *, where: str | None = None, subject: str | None = None, hint: str | None = None
) -> InputError | Exhausted:
    """Translate an ``OSError`` met while doing *what* (``"cannot open"``); notes stay."""
    kind = Exhausted if is_exhausted(error) else InputError
    made = kind(f"{what}: {error.strerror or error}", where=where, subject=subject, hint=hint)
    for note in getattr(error, "__notes__", ()):
        made.add_note(note)
    return made


@contextmanager
def naming(subject: str | bytes | os.PathLike[str]) -> Iterator[None]:
    """Give every :class:`CfsError` that leaves the block without a subject this one."""
    try:
        yield
    except CfsError as error:
        if error.subject is None:
            error.subject = shown_path(subject)
        raise


def exit_codes() -> dict[int, str]:
    """Exit code to meaning, gathered from the error classes; the manual's table is made from it."""
    codes = {0: "done"}
    pending: list[type[CfsError]] = [CfsError]
    while pending:
        error = pending.pop()
        codes.setdefault(error.exit_code, error.meaning)
        pending.extend(error.__subclasses__())
    return dict(sorted(codes.items()))
