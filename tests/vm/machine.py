"""Virtual machines whose kernels have fs-verity: made of Debian packages, booted by QEMU without any acceleration.

``python -m tests.vm.machine [MACHINE]`` runs the checks of :mod:`tests.vm.guest` in them and prints their lines. They
have the same disk, and two have the same kernel. What takes long to make (kernels, root, libraries) is kept
beside the other Debian roots; the disk is made anew each time.
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
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.reference import REPOSITORY, RootUnavailable, debian_root
from tests.vm.checks import KERNELS
from tests.vm.guest import CHECKS
from tests.vm.user_checks import USER

COMMANDS = ("qemu-system-x86_64", "mkfs.ext4", "cpio", "openssl", "busybox")
# Those that a kernel has as modules; the others are built in or of the past.
_MODULES = ("virtio_blk", "libcrc32c", "netfs", "erofs", "overlay", "loop", "fuse")
_DISK = "1200M"
_FURTHER = 100_000
TIMEOUT = 2400.0
"""How long a machine may take, in seconds. Without other work beside it, it takes three hundred."""

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
chmod 666 /root/dev/fuse
cp /bin/busybox /root/opt/busybox
# Not chroot: who is in one may not make user namespaces.
exec switch_root /root /opt/busybox sh -c 'PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/opt/project:/opt/site \
    LANG=C.UTF-8 python3 -m tests.vm.guest {kernel}; /opt/busybox poweroff -f'
"""


def lines(machines: Iterable[str] = CHECKS) -> Iterator[str]:
    """Boot these machines, run the checks of each, and yield what they print. Raises RootUnavailable."""
    with tempfile.TemporaryDirectory(prefix="cfstools-vm-") as made:
        work = Path(made)
        _disk(work)
        for machine in machines:
            yield from _run(_machine(machine, work))


def _machine(name: str, work: Path) -> list[str]:
    """The command that boots this machine."""
    unpacked = debian_root(KERNELS[name])
    (image,) = unpacked.rglob("vmlinuz*")
    initrd = work / f"{name}.gz"
    _initrd(unpacked, name, initrd)
    machine = "qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults"
    command = [*machine.split(), "-serial", "stdio", "-kernel", str(image), "-initrd", str(initrd)]
    command += ["-drive", f"file={work / 'disk.img'},if=virtio,format=raw,cache=unsafe"]
    return [*command, "-append", "console=ttyS0 panic=-1 quiet no_timer_check"]


def _run(command: list[str]) -> Iterator[str]:
    """What a machine says, as it says it; it is stopped when it takes too long."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as machine:
        clock = threading.Timer(TIMEOUT, machine.kill)
        clock.start()
        try:
            assert machine.stdout is not None
            for line in machine.stdout:
                yield line.rstrip()
            if machine.wait() < 0:
                yield f"the machine was stopped, or did not end within {TIMEOUT:.0f} s"
        finally:
            clock.cancel()
            machine.kill()


def _initrd(unpacked: Path, kernel: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="cfstools-initrd-") as made:
        root = Path(made)
        for name in ("bin", "modules", "proc", "dev", "root", "tmp"):
            (root / name).mkdir()
        busybox = shutil.which("busybox")
        assert busybox is not None
        shutil.copy(busybox, root / "bin/busybox")
        modules = [module for module in _MODULES if _unpack_module(unpacked, module, root / f"modules/{module}.ko")]
        (root / "init").write_text(_INIT.format(modules=" ".join(modules), kernel=kernel), encoding="ascii")
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        archive = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), capture_output=True, check=True
        ).stdout
        target.write_bytes(gzip.compress(archive, 1))


def _unpack_module(unpacked: Path, name: str, target: Path) -> bool:
    """Whether the kernel has this module; *target* is then a file with it."""
    for packed in unpacked.rglob(f"{name}.ko.xz"):
        target.write_bytes(lzma.decompress(packed.read_bytes()))
        return True
    return False


def _disk(work: Path) -> None:
    """An ext4 with the verity feature that holds a Debian root, this project and what it needs."""
    tree = work / "tree"
    subprocess.run(["cp", "-a", "--reflink=auto", str(debian_root("guest")), str(tree)], check=True)
    (tree / "work").mkdir()
    project = tree / "opt/project"
    shutil.copytree(REPOSITORY / "cfstools", project / "cfstools", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "tests/vm").mkdir(parents=True)
    for path in (REPOSITORY / "tests/__init__.py", *(REPOSITORY / "tests/vm").glob("*.py")):
        shutil.copy(path, project / path.relative_to(REPOSITORY))
    shutil.copytree(_libraries(), tree / "opt/site")
    _user(tree / "etc")
    _keys(tree / "opt/keys")
    command = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", "-d", str(tree), str(work / "disk.img"), _DISK]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)


def _user(etc: Path) -> None:
    """The ordinary user of the machine, who has a range of further ids; and what fusermount3 reads."""
    (etc / "mtab").symlink_to("../proc/self/mounts")
    for name, text in (
        ("passwd", f"visitor:x:{USER}:{USER}::/nonexistent:/bin/sh\n"),
        ("group", f"visitor:x:{USER}:\n"),
        ("subuid", f"visitor:{_FURTHER}:65536\n"),
        ("subgid", f"visitor:{_FURTHER}:65536\n"),
    ):
        with (etc / name).open("a", encoding="ascii") as file:
            file.write(text)


def _libraries() -> Path:
    """What the package needs, for the Python of the machine's root."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        packages = tomllib.load(file)["project"]["dependencies"]
    # Another list of packages is another directory.
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    place = Path(os.environ.get("CFSTOOLS_ROOTS", "/var/cache/cfstools-tests")) / f"vm-libraries-{key}"
    if not place.is_dir():
        partial = place.with_name(f"{place.name}.partial.{os.getpid()}")
        options = ["--quiet", "--disable-pip-version-check", "--python-version", "3.11", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(partial), *packages]
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


def wanted(machine: str) -> str:
    """The last line of a machine in which all holds."""
    return f"vm: {len(CHECKS[machine])} held, 0 failed"


def main(*machines: str) -> int:
    """Print what the checks say; 0 if all held."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}")
        return 1
    chosen = machines or tuple(CHECKS)
    last = []
    try:
        for line in lines(chosen):
            last += [line] if line.startswith("vm: ") and line.endswith(" failed") else []
            print(line, flush=True)
    except RootUnavailable as error:
        print(f"there can be no machine: {error}")
        return 1
    return 0 if last == [wanted(machine) for machine in chosen] else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
