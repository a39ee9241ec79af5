"""A small image with its store and keys, for tests of signing and verifying."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cfstools.api.build import BuildOptions, build
from cfstools.signing.keys import KeyType, PrivateKey, generate
from cfstools.verity import digest_bytes, object_path


@cache
def key_of(kind: KeyType) -> PrivateKey:
    """The key of this kind, made at its first use."""
    return generate(kind)


@dataclass(frozen=True)
class Place:
    """A directory with a source tree, its image and its store."""

    root: Path

    @property
    def image(self) -> bytes:
        return os.fsencode(self.root / "image.cfs")

    @property
    def image_file(self) -> Path:
        return self.root / "image.cfs"

    @property
    def signature_file(self) -> Path:
        return self.root / "image.cfs.sig"

    @property
    def source(self) -> Path:
        return self.root / "rootfs"

    @property
    def store(self) -> bytes:
        return os.fsencode(self.root / "objects")

    def object_of(self, name: str) -> Path:
        """The object with the contents of the file *name*."""
        digest = digest_bytes((self.source / name).read_bytes())
        return self.root / "objects" / os.fsdecode(object_path(digest))

    def build(self, **options: object) -> None:
        """Build the image again."""
        build(
            os.fsencode(self.source),
            self.image,
            stores=[self.store],
            options=BuildOptions(**options),  # type: ignore[arg-type]
        )


# Name to size: inline, one block, several blocks, one byte more than is read at once, empty.
FILES = {"etc/inline": 10, "etc/small": 100, "usr/lib/blocks": 20_000, "usr/lib/large": (1 << 20) + 1, "empty": 0}
EXTERNAL = [name for name, size in FILES.items() if size > 64]


def make_place(root: Path) -> Place:
    """Make the tree (with a copy and a hard link of ``etc/small``) and build its image."""
    place = Place(root)
    source = random.Random(1)
    for name, size in FILES.items():
        path = place.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(size))
    (place.source / "etc/copy").write_bytes((place.source / "etc/small").read_bytes())
    os.link(place.source / "etc/small", place.source / "usr/linked")
    (place.source / "usr/symlink").symlink_to("lib/large")
    place.build()
    return place
