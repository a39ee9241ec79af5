"""Where the passphrase of a private key comes from: a file, a descriptor, the environment, or the terminal.

Never an argument, which every user of the machine can read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cfstools.cli.params import PATH
from cfstools.errors import PassphraseNeeded, UsageError
from cfstools.text import shown_path
from cfstools.values import Value

if TYPE_CHECKING:
    from cfstools.signing.keys import PrivateKey

F = TypeVar("F", bound=Callable[..., Any])

VARIABLE = b"MKCFS_PASSPHRASE"
_MOST = 1 << 12
_HINT = "give it with --passphrase-file, --passphrase-fd or MKCFS_PASSPHRASE, or run on a terminal"


passphrase_file_option = click.option(
    "--passphrase-file",
    type=PATH,
    metavar="FILE",
    help="Read the key's passphrase from the first line of this file (else: MKCFS_PASSPHRASE, or a prompt).",
)
passphrase_fd_option = click.option(
    "--passphrase-fd",
    type=click.IntRange(min=0),
    metavar="N",
    help="Read the key's passphrase from this open descriptor.",
)


def passphrase_options(function: F) -> F:
    """``--passphrase-file`` and ``--passphrase-fd``; arrive as ``passphrase_file`` and ``passphrase_fd``."""
    return passphrase_file_option(passphrase_fd_option(function))


class Passphrases(Value):
    """Asks for passphrases in the order file or descriptor, environment, terminal; reads the first two once.

    From the first of them on this process holds secrets, and leaves no core dump. *warn* hears of files with keys and
    passphrases that others can read.
    """

    given: bytes | None
    warn: Callable[[str], None]

    @classmethod
    def of(cls, file: bytes | None, fd: int | None, warn: Callable[[str], None]) -> Passphrases:
        """Read what the options name, or the environment. Raises UsageError for both options."""
        from cfstools.linux.contents import read_descriptor, read_secret

        guard_secrets(warn)
        if file is not None and fd is not None:
            raise UsageError("--passphrase-file and --passphrase-fd contradict each other")
        given = os.environb.get(VARIABLE) or None
        if file is not None:
            given = _first_line(read_secret(file, _MOST, warn), "--passphrase-file")
        elif fd is not None:
            given = _first_line(read_descriptor(fd, _MOST), "--passphrase-fd")
        return cls(given=given, warn=warn)

    def load(self, path: bytes) -> PrivateKey:
        """The private key at *path*, asking for its passphrase only if it is encrypted."""
        from cfstools.signing.keys import read_private_key

        try:
            return read_private_key(path, self.given, warn=self.warn)
        except PassphraseNeeded as error:
            if not _on_terminal():
                error.hint = _HINT
                raise
        return read_private_key(path, _prompt(f"Passphrase of {shown_path(path)}"))

    def fresh(self) -> bytes | None:
        """The passphrase for a new key; ``None`` if the user wants none. Raises UsageError with nobody to ask."""
        if self.given is not None:
            return self.given
        if not _on_terminal():
            hint = "give it with --passphrase-file, or leave the key unencrypted with --no-passphrase"
            raise UsageError("there is no terminal to ask for the new key's passphrase on", hint=hint)
        answer = _prompt("Passphrase of the new key (empty for none)")
        if answer and _prompt("The same again") != answer:
            raise UsageError("the two passphrases differ")
        return answer or None


def guard_secrets(warn: Callable[[str], None]) -> None:
    """Let nobody have the memory of this process, which is about to hold a key or a passphrase."""
    from cfstools.linux.libc import forbid_core_dumps

    try:
        forbid_core_dumps()
    except OSError as error:
        warn(f"core dumps with the key in them cannot be ruled out: {error.strerror}")


def _first_line(data: bytes, option: str) -> bytes:
    line = data.partition(b"\n")[0].removesuffix(b"\r")
    if not line:
        raise UsageError(f"{option} gives no passphrase: its first line is empty")
    return line


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _prompt(text: str) -> bytes:
    return os.fsencode(click.prompt(text, hide_input=True, default="", show_default=False, err=True))
