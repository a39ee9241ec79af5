"""What is asked for by another tool's word, or looks like something else than what it is read as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cfstools.errors import FormatError, UsageError
from cfstools.sources.lookalikes import image_like
from cfstools.sources.oci_request import parse_reference
from cfstools.sources.recognise import recognise
from cfstools.sources.source import Reading
from tests.mkcfs import mkcfs
from tests.oci import making
from tests.sources.kinds import kind_of


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("dir:/srv/image", "skopeo copy dir:/srv/image oci:LAYOUT:NAME"),
        ("containers-storage:localhost/app:1", "skopeo copy containers-storage:localhost/app:1 oci:LAYOUT:NAME"),
        ("containers-storage:[overlay@/var/lib]app", "skopeo copy"),
        ("docker:alpine", "docker://HOST/NAME"),
        ("docker-daemon:app:1", "docker save app:1 -o FILE"),
        ("podman:app", "podman save app -o FILE"),
        ("oci-layout:there", "oci:there"),
        ("oci-layout://there", "oci:"),
        ("docker-tarball:a.tar", "docker-archive:a.tar"),
        ("sif:a.sif", "build that directory"),
        ("ostree:app@/ostree/repo", "ostree checkout"),
        ("ostree-unverified-registry:quay.io/app", "skopeo copy"),
        ("ostree-image-signed:docker://app", "skopeo copy"),
        ("oci+https://example.org/app", "skopeo copy"),
        ("http://example.org/a.tar", "skopeo copy"),
        ("https://example.org/a.tar", "skopeo copy"),
        ("registry:app", "skopeo copy"),
        ("git://example.org/app", "skopeo copy"),
        ("file:/srv/app.tar", "/srv/app.tar"),
        ("file:///srv/app.tar", "/srv/app.tar"),
        ("OCI:layout", "oci:"),
        ("Docker-Archive:a.tar", "docker-archive:"),
        ("DIR:x", "skopeo copy dir:x"),
        ("dir:\x1b[2Jx", r"dir:\x1b[2Jx"),
    ],
)
def test_transports_of_other_tools(text: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is no kind of source here; there are docker://IMAGE, oci:DIR") as caught:
        kind_of(text.encode())
    assert advice in (caught.value.hint or "")
    assert str(caught.value).isprintable()
    # What is there is what is meant, however it is called.
    Path(tmp_path, "dir:x").mkdir()
    assert parse_reference(b"dir:x") is None
    assert parse_reference(b"unknown:x") is None


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


LAYOUT = making.image([making.hello()])
IMAGES: dict[str, tuple[dict[str, bytes], str]] = {
    "dir": ({"version": b"Directory Transport Version: 1.1\n", "manifest.json": b"{}", "a" * 64: b"x"}, "as dir:"),
    "no oci-layout": ({name: data for name, data in LAYOUT.items() if name != "oci-layout"}, "lacks its oci-layout"),
    "no index": ({name: data for name, data in LAYOUT.items() if name != "index.json"}, "lacks its index.json"),
    "docker": (making.docker([making.hello()]), "a docker archive unpacked"),
    "bundle": ({"config.json": b'{"ociVersion": "1.0"}', "rootfs/etc/passwd": b""}, "runtime bundle"),
}
TREES: dict[str, dict[str, bytes]] = {
    "nothing": {"etc/passwd": b""},
    "a web site": {"index.json": b"{}", "manifest.json": b'{"name": "x"}', "version": b"1.0"},
    "a program": {"version": b"1", "config.json": b"{}"},
}


@pytest.mark.parametrize("name", IMAGES)
def test_directories_that_are_images(name: str, tmp_path: Path) -> None:
    files, what = IMAGES[name]
    root = tree(tmp_path / "it", files)
    (warning,) = image_like(bytes(root))
    assert what in warning
    assert "is built as the plain tree it is" in warning
    done = mkcfs("build", root, tmp_path / "image")
    assert what in done.stderr.decode()
    assert f"mkcfs: warning: {warning}" in done.stderr.decode()


@pytest.mark.parametrize("name", TREES)
def test_directories_that_are_trees(name: str, tmp_path: Path) -> None:
    root = tree(tmp_path, TREES[name])
    assert image_like(bytes(root)) == ()
    os.mkfifo(root / "pipe")
    assert image_like(bytes(root / "nothing")) == ()


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "is empty"),
        (b"hsqs" + bytes(100), "squashfs"),
        (bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(3000), "EROFS"),
        (bytes(1080) + b"\x53\xef" + bytes(3000), "ext4"),
        (bytes(2 << 20), None),
        (b"PK\3\4" + bytes(100), "zip"),
        (b"070701" + bytes(100), "cpio"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (making.COMPRESSORS["+gzip"](b"text"), "is compressed"),
        (b"text", None),
    ],
)
def test_files_of_other_formats(data: bytes, hint: str | None, tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(data)
    path = bytes(tmp_path / "it")
    with (
        pytest.raises(FormatError, match="expected a directory, an image or a dump") as caught,
        recognise(path) as source,
        source.open(Reading()),
    ):
        pass
    assert (caught.value.hint is None) is (hint is None)
    assert (hint or "") in (caught.value.hint or "")
