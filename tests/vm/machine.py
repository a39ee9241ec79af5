"""A virtual machine whose kernel has fs-verity: made of Debian packages, booted by QEMU without any acceleration.

``python -m tests.vm.machine`` runs the checks of :mod:`tests.vm.guest` in it and prints their lines. What takes long to
make (kernel, root, libraries) is kept beside the other Debian roots; the disk is made anew each time.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.reference import REPOSITORY, RootUnavailable, debian_root
from tests.vm import guest

COMMANDS = ("qemu-system-x86_64", "mkfs.ext4", "cpio", "openssl", "busybox")
_MODULES = ("virtio_blk", "libcrc32c", "netfs", "erofs", "overlay", "loop")
_PACKAGES = ("click", "cryptography", "tqdm", "zstandard")
_DISK = "1200M"
_TIMEOUT = 500.0

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko; done
mount -t ext4 /dev/vda /root
for place in proc sys dev tmp; do mkdir -p /root/$place; done
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t devtmpfs dev /root/dev
mount -t tmpfs tmp /root/tmp
chroot /root /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/opt/project:/opt/site LANG=C.UTF-8 \
    python3 -m tests.vm.guest
poweroff -f
"""


def lines() -> Iterator[str]:
    """Boot the machine, run the checks in it, and yield what they print. Raises RootUnavailable."""
    with tempfile.TemporaryDirectory(prefix="cfstools-vm-") as made:
        work = Path(made)
        kernel = debian_root("verity-kernel")
        (image,) = kernel.glob("boot/vmlinuz-*")
        _initrd(kernel, work / "initrd.gz")
        _disk(work)
        machine = "qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults"
        command = [*machine.split(), "-serial", "stdio", "-kernel", str(image), "-initrd", str(work / "initrd.gz")]
        command += ["-drive", f"file={work / 'disk.img'},if=virtio,format=raw,cache=unsafe"]
        command += ["-append", "console=ttyS0 panic=-1 quiet"]
        yield from _run(command)


def _run(command: list[str]) -> Iterator[str]:
    """What a machine says, as it says it; it is stopped when it takes too long."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as machine:
        clock = threading.Timer(_TIMEOUT, machine.kill)
        clock.start()
        try:
            assert machine.stdout is not None
            for line in machine.stdout:
                yield line.rstrip()
            if machine.wait() < 0:
                yield f"the machine was stopped, or did not end within {_TIMEOUT:.0f} s"
        finally:
            clock.cancel()
            machine.kill()


def _initrd(kernel: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cfstools-initrd-") as made:
        root = Path(made)
        for name in ("bin", "modules", "proc", "dev", "root", "tmp"):
            (root / name).mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, root / "bin/busybox")
        for module in _MODULES:
            (packed,) = kernel.rglob(f"{module}.ko.xz")
            (root / f"modules/{module}.ko").write_bytes(lzma.decompress(packed.read_bytes()))
        (root / "init").write_text(_INIT.format(modules=" ".join(_MODULES)), encoding="ascii")
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), capture_output=True, check=True
        ).stdout
        target.write_bytes(gzip.compress(archive, 1))


def _disk(work: Path) -> None:
    """An ext4 with the verity feature that holds a Debian root, this project and what it needs."""
    tree = work / "tree"
    subprocess.run(["cp", "-a", "--reflink=auto", str(debian_root("vm")), str(tree)], check=True)
    (tree / "work").mkdir()
    project = tree / "opt/project"
    shutil.copytree(REPOSITORY / "cfstools", project / "cfstools", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "tests/vm").mkdir(parents=True)
    for name in ("tests/__init__.py", "tests/vm/__init__.py", "tests/vm/guest.py"):
        shutil.copy(REPOSITORY / name, project / name)
    shutil.copytree(_libraries(), tree / "opt/site")
    _keys(tree / "opt/keys")
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", "-d", str(tree), str(work / "disk.img"), _DISK]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)


def _libraries() -> Path:
    """What the package needs, for the Python of the machine's root."""
    # Another list of packages is another directory.
    key = hashlib.sha256(" ".join(_PACKAGES).encode()).hexdigest()[:8]
    place = Path(os.environ.get("CFSTOOLS_ROOTS", "/var/cache/cfstools-tests")) / f"vm-libraries-{key}"
    if not place.is_dir():
        partial = place.with_name(f"{place.name}.partial.{os.getpid()}")
        options = ["--quiet", "--disable-pip-version-check", "--python-version", "3.11", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(partial), *_PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RootUnavailable(f"the libraries for the virtual machine cannot be had: {done.stderr.strip()}")
        partial.rename(place)
    return place


def _keys(place: Path) -> None:
    """An image, the kernel's signature of it by a key whose certificate is there, and one by a key that is not."""
    place.mkdir()
    mkcfs = [sys.executable, "-m", "cfstools.cli"]
    subprocess.run(
        [*mkcfs, "build", str(REPOSITORY / "docs"), str(place / "image.cfs")], check=True, capture_output=True
    )
    for name in ("good", "other"):
        key, cert = place / f"{name}.key", place / f"{name}.pem"
        new = f"openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN={name} -keyout {key} -out {cert}"
        subprocess.run(new.split(), check=True, capture_output=True)
        words = ["sign", str(place / "image.cfs"), "--kernel", "--key", str(key), "--cert", str(cert)]
        subprocess.run([*mkcfs, *words, "--signature", str(place / f"{name}.p7s")], check=True, capture_output=True)
    convert = f"openssl x509 -in {place / 'good.pem'} -outform DER -out {place / 'cert.der'}"
    subprocess.run(convert.split(), check=True, capture_output=True)


def main() -> int:
    """Print what the checks say; 0 if all held."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}")
        return 1
    last = ""
    try:
        for line in lines():
            if line.startswith("vm: "):
                last = line
            print(line, flush=True)
    except RootUnavailable as error:
        print(f"there can be no machine: {error}")
        return 1
    return 0 if last == f"vm: {len(guest.CHECKS)} held, 0 failed" else 1


if __name__ == "__main__":
    raise SystemExit(main())
