"""Every error this package raises on purpose, each with the exit code it ends the command with.

An error is an interface: ``str(error)`` is the one line a user sees after ``mkcfs: ``, in the form
``SUBJECT: WHERE: WHAT``. Parsers fill in *what* and *where* (a line, a field, an offset); whoever opened
the input adds the *subject* (a path) with :func:`naming`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from cfstools import text

shown_path = text.shown_path
"""What errors name files with; here because whoever names one raises one."""


class CfsError(Exception):
    """Base of all deliberate errors: something failed (exit code 1).

    ``what`` says what is wrong, ``where`` the place inside the input, ``subject`` the file or object it is
    about, ``hint`` how to mend it. Notes (``add_note``) say what else the user has to do, such as what to delete.
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
        return text.printable(": ".join(part for part in (self.subject, self.where, self.what) if part))


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


class TransientError(InputError):
    """Reading from or writing to another place failed in a way that a retry may not meet again."""


class StoreError(CfsError):
    """An object store could not be used as one."""


class StoreBusy(StoreError):
    """Another process uses the store, and waiting for it was not wanted."""


class ObjectMissing(StoreError):
    """An object is in none of the stores."""


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
