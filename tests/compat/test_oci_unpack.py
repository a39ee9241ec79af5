"""Images made and unpacked by other tools: our tree is the one they leave on disk, by every route."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cfstools.oci.mapping import OciMapping
from cfstools.oci.select import Selector
from cfstools.sources.oci import OciTree, read_oci
from cfstools.sources.oci_containers import open_images
from cfstools.sources.oci_request import Form, OciOptions
from cfstools.tree.filters import split_hardlinks, use_epoch
from cfstools.verity import digest_bytes
from tests import requirements
from tests.formats.images import write_image
from tests.oci.making import link, member, tar
from tests.reference import Reference

PLAIN = OciOptions(mapping=OciMapping.PLAIN)
ROOT = member("./", mode=0o755)
CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def run(*words: str | Path, **options: Any) -> bytes:
    output: bytes = subprocess.run([str(word) for word in words], check=True, capture_output=True, **options).stdout
    return output


def read(form: Form | None, path: Path, name: str | None = None, options: OciOptions = PLAIN) -> OciTree:
    with open_images(form, [os.fsencode(path)]) as container:
        return read_oci(container, selector=Selector(name=name), options=options)


def umoci_image(where: Path, layers: Sequence[bytes]) -> Path:
    """A layout with these layers, added by umoci."""
    layout = where / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v")
    for number, layer in enumerate(layers):
        (where / f"{number}.tar").write_bytes(layer)
        run("umoci", "raw", "add-layer", "--image", f"{layout}:v", where / f"{number}.tar")
    return layout


def unpacked(layout: Path, where: Path) -> Path:
    run("umoci", "raw", "unpack", "--image", f"{layout}:v", where / "rootfs")
    return where / "rootfs"


def pax(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return tar(*members, form=tarfile.PAX_FORMAT)


def xattrs(**values: str) -> dict[str, str]:
    return {"SCHILY.xattr." + name.replace("__", "."): value for name, value in values.items()}


def deep() -> list[tuple[tarfile.TarInfo, bytes]]:
    """Directories with long paths, each with its own entry, and a file at the end."""
    paths = ["/".join(["deep" * 20] * depth) for depth in range(1, 11)]
    return [*(member(path + "/") for path in paths), member(paths[-1] + "/end", b"2")]


def sparse() -> bytes:
    """A file with holes, packed by GNU tar in its PAX format 1.0."""
    script = (
        "set -e; d=$(mktemp -d); cd $d; truncate -s 1M f;"
        "printf data | dd of=f bs=1 seek=500000 conv=notrunc status=none;"
        "tar --sparse --format=pax --sparse-version=1.0 --pax-option=delete=atime,delete=ctime --mtime=@1000 -cf - f;"
        "rm -r $d"
    )
    return run("sh", "-c", script)


BASE = tar(
    ROOT,
    member("d/", mode=0o750),
    member("d/x", b"old"),
    member("d/sub/", uid=7),
    member("d/sub/y", b"deep" * 100),
    member("f", b"file"),
    member("big", b"big" * 50_000),
    link("l", "d"),
)

CASES: dict[str, Callable[[], list[bytes]]] = {
    "plain": lambda: [BASE],
    "attributes": lambda: [
        BASE,
        tar(member("./", mode=0o711, uid=1), member("d/", mode=0o1777, gid=9, mtime=5), member("f", b"n", mode=0o6755)),
    ],
    "whiteouts": lambda: [
        BASE,
        tar(member("d/"), member("d/.wh.x", b""), member(".wh.f", b""), member(".wh.absent", b"")),
        tar(member("f", b"again")),
    ],
    "whiteout of a directory": lambda: [BASE, tar(member(".wh.d", b"")), tar(member("d/"), member("d/n", b"1"))],
    "whiteout and new file": lambda: [BASE, tar(member(".wh.f", b""), member("f", b"new"))],
    "new file and whiteout": lambda: [BASE, tar(member("f", b"new"), member(".wh.f", b""))],
    "new directory and whiteout": lambda: [BASE, tar(member("d/"), member(".wh.d", b""))],
    "whiteout and new directory": lambda: [BASE, tar(member(".wh.d", b""), member("d/"), member("d/n", b"1"))],
    "opaque first": lambda: [BASE, tar(member("d/"), member("d/.wh..wh..opq", b""), member("d/n", b"1"))],
    "opaque last": lambda: [BASE, tar(member("d/"), member("d/n", b"1"), member("d/.wh..wh..opq", b""))],
    "opaque with subdirectory": lambda: [
        BASE,
        tar(member("d/"), member("d/.wh..wh..opq", b""), member("d/sub/"), member("d/sub/z", b"2")),
    ],
    "replacements": lambda: [
        BASE,
        tar(member("d", b"now a file"), member("f/"), member("f/n", b"1"), member("l/"), member("l/n", b"2")),
    ],
    "hard links": lambda: [tar(ROOT, member("a", b"1" * 100), link("b", "a", hard=True), link("c", "/b", hard=True))],
    "hard links to lower layers": lambda: [
        BASE,
        tar(link("h", "big", hard=True), link("d/h", "f", hard=True), link("m", "l", hard=True)),
        tar(member("big", b"replaced"), member(".wh.f", b"")),
    ],
    "hard link to a removed file": lambda: [BASE, tar(link("h", "big", hard=True), member(".wh.big", b""))],
    "missing parents below": lambda: [BASE, tar(member("d/n", b"1"), member("d/sub/m", b"2"))],
    "missing parents": lambda: [BASE, tar(member("p/q/r", b"1"))],
    "link of a lower layer as parent": lambda: [BASE, tar(member("l/n", b"1"))],
    "link of the layer as parent": lambda: [BASE, tar(link("k", "/d/sub"), member("k/n", b"1"))],
    "link out of the root": lambda: [BASE, tar(link("k", "../../../d"), member("k/n", b"1"))],
    "dot dot": lambda: [BASE, tar(member("d/../../d/n", b"1"), member("/abs", b"2"))],
    "directory twice": lambda: [tar(ROOT, member("d/"), member("d/x", b"1"), member("./d/", mode=0o700))],
    "xattrs": lambda: [
        pax(
            ROOT,
            member("d/", pax_headers=xattrs(user__a="1", trusted__b="2")),
            member("f", b"x", pax_headers=xattrs(user__long="v" * 300)),
            member("w", b"x", pax_headers={"SCHILY.xattr.user.overlay.whiteout": "y", "SCHILY.xattr.user.a": "b"}),
        ),
        pax(member("d/", pax_headers=xattrs(user__c="3"))),
    ],
    "capabilities": lambda: [
        pax(ROOT, member("ping", b"x" * 100, mode=0o755, pax_headers=xattrs(security__capability=CAPABILITY.decode())))
    ],
    "devices": lambda: [
        tar(
            ROOT,
            member("c", None, type=tarfile.CHRTYPE, mode=0o620, devmajor=5, devminor=1),
            member("b", None, type=tarfile.BLKTYPE, mode=0o660, devmajor=259, devminor=300),
            member("zero", None, type=tarfile.CHRTYPE, mode=0o644, devmajor=0, devminor=0),
            member("p", None, type=tarfile.FIFOTYPE, mode=0o600),
        )
    ],
    "names": lambda: [
        pax(ROOT, member("n" * 255, b"1"), *deep(), member("a\nb", b"3")),
        tar(
            member("\udcff\udcfe", b"4"), member("umlaut-\u00fc", b"5"), link("sl", "t" * 3000), member("sp ace", b"6")
        ),
    ],
    "times": lambda: [
        pax(ROOT, member("a", b"1", mtime=1234567890.123456789), member("b/", mtime=-5), member("c", b"", mtime=2**33)),
        tar(member("z", b"", mtime=0)),
    ],
    "sizes": lambda: [
        tar(ROOT, *(member(f"f{size}", bytes([65]) * size) for size in (0, 1, 63, 64, 65, 4096, 70_000)))
    ],
    "sparse": lambda: [tar(ROOT), sparse()],
    "markers with contents": lambda: [BASE, tar(member(".wh.f", b"not empty"), member("d/.wh.sub/"))],
    "aufs": lambda: [BASE, tar(member(".wh..wh.aufs", b""), member(".wh..wh.plnk/"))],
}

# Here umoci leaves the time of day on directories it had to make or to remove something from.
CLOCK = {"new directory and whiteout", "missing parents"}


@pytest.mark.root
@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_plain_mapping_is_what_umoci_unpacks(case: str, tmp_path: Path, reference: Reference) -> None:
    requirements.need_command("umoci", "tar")
    layout = umoci_image(tmp_path, CASES[case]())
    check_unpacked(layout, tmp_path, reference, clock=case in CLOCK)


def check_unpacked(layout: Path, where: Path, reference: Reference, *, clock: bool = False) -> None:
    """Our image of ``layout:v`` equals the reference's image of what umoci unpacks; but for times if *clock*."""
    rootfs = unpacked(layout, where)
    reference.mkcomposefs(rootfs, where / "theirs", *(["--use-epoch"] if clock else []))
    tree = read(Form.OCI, layout, "v")
    # The reference tool loses hard links of a directory.
    split_hardlinks(tree.root)
    if clock:
        use_epoch(tree.root)
    ours = bytes(write_image(tree.root))
    if ours != (where / "theirs").read_bytes():
        (where / "ours").write_bytes(ours)
        pair = [reference.info("dump", where / name).decode(errors="replace") for name in ("ours", "theirs")]
        assert pair[0] == pair[1]
    assert ours == (where / "theirs").read_bytes()


def fill(root: Path) -> None:
    """A little of everything, on disk."""
    for name in ("usr/bin", "usr/lib/deep/er", "etc", "run", "var/tmp"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(os.urandom(200_000))
    os.link(root / "usr/bin/tool", root / "usr/bin/tool-alias")
    (root / "usr/lib/small").write_text("small")
    (root / "usr/lib/deep/er/file").write_bytes(b"x" * 4096)
    (root / "bin").symlink_to("usr/bin")
    (root / "var/tmp").chmod(0o1777)
    (root / "run/leftover").write_text("left over")
    os.setxattr(root / "etc", "user.note", b"kept in the plain mapping")
    os.setxattr(root / "usr/bin/tool", "security.capability", CAPABILITY)
    os.mkfifo(root / "var/pipe")
    os.mknod(root / "usr/zero", 0o20644, os.makedev(1, 5))
    (root / os.fsdecode(b"etc/\xff\xfe")).write_text("not UTF-8")


def change(root: Path) -> None:
    """What a second layer does to it."""
    (root / "usr/lib/small").unlink()
    (root / "usr/lib/deep/er/file").unlink()
    (root / "usr/lib/deep/er").rmdir()
    (root / "usr/lib/deep/er").write_text("a file now")
    os.link(root / "usr/bin/tool", root / "usr/lib/tool")
    (root / "etc/new").write_bytes(b"n" * 1000)
    (root / "etc").chmod(0o711)


def by_umoci(where: Path) -> Path:
    layout = where / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v")
    for step in (fill, change):
        bundle = where / step.__name__
        run("umoci", "unpack", "--image", f"{layout}:v", bundle)
        step(bundle / "rootfs")
        run("umoci", "repack", "--image", f"{layout}:v", bundle)
    return layout


def by_buildah(where: Path) -> Path:
    base = ["buildah", "--root", str(where / "st"), "--runroot", str(where / "run"), "--storage-driver", "vfs"]
    layout = where / "layout"
    origin = "scratch"
    for step in (fill, change):
        name = run(*base, "from", origin).decode().strip()
        step(Path(run(*base, "mount", name).decode().strip()))
        origin = run(*base, "commit", "-q", name, step.__name__).decode().strip()
        if step is change:
            run(*base, "commit", "-q", name, f"oci:{layout}:v")
        run(*base, "umount", name)
    run(*base, "rm", "--all")
    return layout


MAKERS = {"umoci": by_umoci, "buildah": by_buildah}


def skopeo(*words: str | Path) -> None:
    run("skopeo", "--insecure-policy", "copy", "-q", *words)


@pytest.mark.root
@pytest.mark.reference
@pytest.mark.parametrize("maker", MAKERS)
def test_every_route_gives_one_digest(maker: str, tmp_path: Path, reference: Reference) -> None:
    requirements.need_command(maker, "umoci", "skopeo", "gzip", "zstd")
    layout = MAKERS[maker](tmp_path)
    source = f"oci:{layout}:v"
    zstd = ("--dest-compress", "--dest-compress-format", "zstd")
    skopeo(source, f"oci:{tmp_path}/gzip:v")
    skopeo(*zstd, source, f"oci:{tmp_path}/zstd:v")
    skopeo(source, f"oci-archive:{tmp_path}/oci.tar:v")
    skopeo(*zstd, source, f"oci-archive:{tmp_path}/zstd.tar:v")
    skopeo(source, f"docker-archive:{tmp_path}/docker.tar:app:v")
    for name in ("oci.tar", "docker.tar"):
        run("gzip", "-k", tmp_path / name)
        run("zstd", "-q", tmp_path / name)
    routes: list[tuple[Form | None, str, str | None]] = [
        *((None, name, None) for name in ("oci.tar", "oci.tar.gz", "oci.tar.zst", "zstd.tar")),
        *((None, name, None) for name in ("docker.tar", "docker.tar.gz", "docker.tar.zst")),
        (Form.OCI, "layout", "v"),
        (Form.OCI, "gzip", "v"),
        (Form.OCI, "zstd", None),
        (Form.OCI_ARCHIVE, "oci.tar", "v"),
        (Form.OCI_ARCHIVE, "oci.tar.gz", "v"),
        (Form.OCI_ARCHIVE, "oci.tar.zst", None),
        (Form.OCI_ARCHIVE, "zstd.tar", None),
        (Form.DOCKER_ARCHIVE, "docker.tar", "app:v"),
        (Form.DOCKER_ARCHIVE, "docker.tar.gz", None),
        (Form.DOCKER_ARCHIVE, "docker.tar.zst", None),
    ]
    for options in (OciOptions(), PLAIN):
        found = set()
        for form, name, choice in routes:
            tree = read(form, tmp_path / name, choice, options)
            assert len(tree.report.layers) >= 2
            found.add(digest_bytes(write_image(tree.root, min_version=1)))
        assert len(found) == 1
    tree = read(Form.OCI, layout, "v")
    assert tree.root.entries.keys() >= {b"usr", b"bin", b"etc"}
    check_unpacked(layout, tmp_path, reference)
