"""The container image of the tutorial: a small application on a small base, the same bytes every time."""

from __future__ import annotations

from tests.oci import making

_LIBRARY = making.member("usr/lib/libapp.so", b"library\n" * 40_000)
_BASE = making.tar(
    making.member("etc/"),
    making.member("etc/os-release", b'NAME="Tutorial"\nVERSION_ID=1\n'),
    making.member("usr/"),
    making.member("usr/bin/"),
    making.member("usr/lib/"),
    _LIBRARY,
    making.member("usr/lib/old.so", b"old\n" * 1000),
)
_APPLICATION = making.tar(
    making.member("usr/"),
    making.member("usr/bin/"),
    making.member("usr/bin/app", b"#!/bin/sh\necho hello\n" + b"#\n" * 100, mode=0o755),
    making.link("usr/bin/app2", "usr/bin/app", hard=True),
    making.member("usr/lib/"),
    making.member("usr/lib/.wh.old.so", b""),
)


def archive() -> bytes:
    """The image as an OCI archive with two layers and a tag; not compressed, so that no library decides its bytes."""
    layout = making.Layout()
    platform = {"os": "linux", "architecture": "amd64"}
    layout.tag(layout.manifest([_BASE, _APPLICATION], platform=platform), "latest")
    return making.archive(layout.files())
