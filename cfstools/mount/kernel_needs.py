"""Errors that say which feature of the kernel is missing, and which Linux has it (composefs format, section 9.3)."""

from __future__ import annotations

import errno
import os

from cfstools.errors import CfsError, InputError, Unsupported


def missing(what: str, since: str, *, hint: str | None = None) -> Unsupported:
    """*what* needs a newer kernel."""
    return Unsupported(f"{what} needs Linux {since} or newer, and this is {os.uname().release}", hint=hint)


def cannot(what: str, error: OSError) -> CfsError:
    """A system call failed: for want of rights, or for what the kernel says."""
    if error.errno == errno.EPERM:
        return Unsupported(f"cannot {what}: only root can", hint="`mkcfs extract` works for everybody")
    hint = "the kernel's log may say more (dmesg)" if error.errno == errno.EINVAL else None
    return InputError(f"cannot {what}: {error.strerror}", hint=hint)
