"""No private key and no passphrase is in anything that is printed, whatever fails and however much was asked for."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mkcfs import mkcfs

PASSPHRASE = b"correct horse battery staple"
PIECE = 12  # a run of key text this long is no accident


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs/file").write_bytes(b"x" * 5000)
    (tmp_path / "pass").write_bytes(PASSPHRASE + b"\n")
    (tmp_path / "wrong").write_bytes(b"another phrase altogether\n")
    mkcfs("build", "rootfs", "image.cfs", "--store", "objects")
    mkcfs("keygen", "plain", "--no-passphrase")
    mkcfs("keygen", "locked", "--passphrase-file", "pass")
    lines = Path("plain.key").read_bytes().splitlines()
    (tmp_path / "broken.key").write_bytes(b"\n".join([lines[0], lines[1][:-8] + b"AAAAAAAA", *lines[2:]]))
    (tmp_path / "cut.key").write_bytes(Path("locked.key").read_bytes()[:-40])
    return tmp_path


def secrets_of(path: Path) -> Iterator[bytes]:
    """The text of a key file in pieces, and what it stands for."""
    text = b"".join(line for line in path.read_bytes().splitlines() if not line.startswith(b"-"))
    yield from (text[at : at + PIECE] for at in range(0, len(text) - PIECE, PIECE))
    if path.name == "plain.key":
        raw = base64.b64decode(text)
        yield raw[-32:]
        yield raw[-32:].hex().encode()


COMMANDS = [
    ["sign", "image.cfs", "--key", "plain.key"],
    ["sign", "image.cfs", "--key", "locked.key", "--passphrase-file", "pass"],
    ["sign", "image.cfs", "--key", "locked.key", "--passphrase-file", "wrong"],
    ["sign", "image.cfs", "--key", "broken.key"],
    ["sign", "image.cfs", "--key", "cut.key", "--passphrase-file", "pass"],
    ["sign", "missing.cfs", "--key", "plain.key"],
    ["sign", "rootfs", "--key", "plain.key"],
    ["verify", "image.cfs", "--key", "plain.key"],
    ["verify", "image.cfs", "--key", "broken.key", "--json"],
    ["build", "rootfs", "new.cfs", "--store", "objects", "--sign-key", "plain.key", "-v"],
    ["build", "rootfs", "new.cfs", "--store", "objects", "--sign-key", "plain.key", "--json"],
    ["build", "rootfs", "rootfs", "--store", "objects", "--sign-key", "plain.key"],
    ["build", "rootfs", "new.cfs", "--sign-key", "locked.key", "--passphrase-file", "wrong"],
    ["keygen", "plain", "--no-passphrase"],
    ["keygen", "other", "--passphrase-file", "pass"],
]


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_no_secret_is_printed(debug: list[str], place: Path) -> None:
    names = ("plain.key", "locked.key", "broken.key", "cut.key")
    secrets = [PASSPHRASE, *itertools.chain.from_iterable(secrets_of(place / name) for name in names)]
    codes = set()
    for command in COMMANDS:
        done = mkcfs(*command, *debug, check=False)
        codes.add(done.code)
        for secret in secrets:
            assert secret not in done.stdout + done.stderr, command
    assert {0, 1} <= codes
