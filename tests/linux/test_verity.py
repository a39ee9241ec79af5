"""fs-verity requests: layout against the kernel's header, behaviour where fs-verity is missing."""

from __future__ import annotations

import errno
import fcntl
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from cfstools.linux import files, verity

PROGRAM = r"""
#include <stdio.h>
#include <stddef.h>
#include <linux/fs.h>
#include <linux/fsverity.h>
int main(void) {
    printf("%lu %lu %lu", (unsigned long)FICLONE, (unsigned long)FS_IOC_ENABLE_VERITY,
           (unsigned long)FS_IOC_MEASURE_VERITY);
    printf(" %zu %zu %zu %zu", sizeof(struct fsverity_enable_arg), offsetof(struct fsverity_enable_arg, salt_ptr),
           offsetof(struct fsverity_enable_arg, sig_size), offsetof(struct fsverity_enable_arg, sig_ptr));
    return 0;
}
"""


@pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/linux/fsverity.h").exists(),
    reason="needs gcc and the kernel's user headers",
)
def test_numbers_and_layout_are_the_kernels(tmp_path: Path) -> None:
    source = tmp_path / "numbers.c"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-o", str(tmp_path / "numbers"), str(source)], check=True)
    out = subprocess.run([str(tmp_path / "numbers")], check=True, capture_output=True, text=True).stdout
    numbers = [int(word) for word in out.split()]
    assert numbers[:3] == [files.FICLONE, verity.FS_IOC_ENABLE_VERITY, verity.FS_IOC_MEASURE_VERITY]
    packed = verity._ENABLE_ARG.pack(1, 2, 3, 4, 0x5A5A5A5A5A5A5A5A, 6, 0x7B7B7B7B7B7B7B7B)
    size, salt, signature_size, signature = numbers[3:]
    assert len(packed) == size
    assert packed[salt : salt + 8] == b"\x5a" * 8
    assert packed[signature_size] == 6
    assert packed[signature : signature + 8] == b"\x7b" * 8


def test_plain_file_has_no_verity(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"data")
    with path.open("rb") as file:
        assert verity.measure(file.fileno()) is None
    with open("/proc/self/status", "rb") as file:
        assert verity.measure(file.fileno()) is None
    with pytest.raises(OSError):
        verity.measure(1_000_000_000)


def test_enable_then_measure(tmp_path: Path) -> None:
    """Where the file system of the tests has fs-verity this is the real thing; elsewhere the refusal is checked."""
    path = tmp_path / "f"
    path.write_bytes(b"hello world\n")
    with path.open("rb") as file:
        refused = None
        try:
            verity.enable(file.fileno(), 1, 4096)
        except OSError as error:
            refused = error.errno
        measured = verity.measure(file.fileno())
    if refused is None:
        digest = "37061ef2ac4c21bec68489b56138c5780306a4ad7fe6676236ecdf2c9027cd92"
        assert measured == (1, bytes.fromhex(digest))
    else:
        assert refused in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)
        assert measured is None


def test_measured_digest_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer, written into the argument as it does."""

    def answer(_fd: int, request: int, argument: bytearray) -> int:
        assert request == verity.FS_IOC_MEASURE_VERITY
        assert struct.unpack_from("=HH", argument) == (0, 64)
        argument[: 4 + 32] = struct.pack("=HH", 1, 32) + b"d" * 32
        return 0

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert verity.measure(0) == (1, b"d" * 32)


def test_enable_passes_salt_and_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    seen = []

    def take(_fd: int, request: int, argument: bytes) -> int:
        assert request == verity.FS_IOC_ENABLE_VERITY
        version, algorithm, block, salt_size, salt, sig_size, sig = verity._ENABLE_ARG.unpack(argument)
        seen.append((version, algorithm, block, ctypes.string_at(salt, salt_size), ctypes.string_at(sig, sig_size)))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", take)
    verity.enable(0, 2, 1024, b"salt", b"signature\0x")
    assert seen == [(1, 2, 1024, b"salt", b"signature\0x")]


def test_what_has_no_verity_offers_none() -> None:
    with open("/proc/self/status", "rb") as file:
        assert not verity.offered(file.fileno())
