"""What this process or machine runs out of is never said of a file, an object or an image."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfstools.errors import CheckFailed, Exhausted, InputError, StoreError, os_error, raise_exhausted
from cfstools.store.base import store_error
from tests.mkcfs import mkcfs, unmeasured

# Each call with every number of descriptors that may be left; those open before it are open afterwards.
PROGRAM = """
import json, os, resource, sys
from cfstools import native
from cfstools.errors import CfsError
native.use(sys.argv[1])
words = json.loads(sys.argv[2])
from cfstools.api.verify import verify
from cfstools.api.store_fsck import fsck
from cfstools.api.cat import cat
from cfstools.store.care.repair import RepairOptions
image, store, donor = (os.fsencode(word) for word in words)
options = RepairOptions(replace=True, donors=[donor])
calls = {
    "verify": lambda: verify(image, stores=[store]).ok,
    "shallow": lambda: verify(image, stores=[store], deep=False).ok,
    "chain": lambda: verify(image, stores=[donor, store]).ok,
    "fsck": lambda: fsck(store, now=0, threads=1).ok,
    "repair": lambda: fsck(store, now=0, threads=1, options=options).ok,
    "cat": lambda: len(b"".join(cat(image, b"/large", stores=[store]))) == 2_000_000,
}
for call in calls.values():
    call()  # everything is imported
before = os.listdir("/proc/self/fd")
lowest, hard = max(map(int, before)), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for name, call in calls.items():
    said = []
    for left in range(0, 24):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, hard))
        try:
            answer = "fine" if call() else "wrong"
        except CfsError as error:
            answer = [error.exit_code, str(error)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        said.append(answer)
    assert os.listdir("/proc/self/fd") == before, name
    print(json.dumps([name, said]))
"""


@pytest.mark.both
@pytest.mark.parametrize("implementation", ["native", "pure"])
def test_no_descriptor_left(tmp_path: Path, implementation: str) -> None:
    for place in ("source", "donor"):
        (tmp_path / place).mkdir()
    for number in range(40):
        (tmp_path / f"source/{number}").write_bytes(b"%d" % number * 1000)
    (tmp_path / "source/large").write_bytes(b"l" * 2_000_000)
    image, store = tmp_path / "image.cfs", tmp_path / "store"
    mkcfs("build", tmp_path / "source", image, "--store", store)
    words = json.dumps([str(image), str(store), str(tmp_path / "donor")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, implementation, words],
        capture_output=True,
        text=True,
        env=unmeasured(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, said = json.loads(line)
        assert "fine" in said, name
        assert "wrong" not in said, name
        failures = [one for one in said if one != "fine"]
        assert failures, name
        assert all(code == 1 and "Too many open files" in what for code, what in failures), name


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_such_errors_are_not_about_what_was_looked_at(number: int) -> None:
    error = OSError(number, os.strerror(number))
    for made in (os_error(error, "cannot read"), store_error(error, "cannot open", "store")):
        assert isinstance(made, Exhausted)
        assert not isinstance(made, InputError | StoreError | CheckFailed)
        assert made.exit_code == 1
    assert type(os_error(OSError(errno.EIO, "broken"), "cannot read")) is InputError


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_about_what_was_looked_at_either(number: int) -> None:
    with pytest.raises(Exhausted, match="object: cannot write: "):
        raise_exhausted(OSError(number, os.strerror(number)), "cannot write", "object")
    raise_exhausted(OSError(errno.EIO, "broken"), "cannot write", "object")


def test_notes_stay() -> None:
    error = OSError(errno.EIO, "broken")
    error.add_note("left behind")
    assert os_error(error, "cannot read").__notes__ == ["left behind"]
