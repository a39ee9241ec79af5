"""Trees that a layer can hold, with contents to go with them, and layers read back."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from cfstools.formats.tar import Member, TarReader
from cfstools.oci.images import LayerSource
from cfstools.oci.layer import LayerOptions, read_layer
from cfstools.oci.mapping import KeptXattrs, XattrKeeper
from cfstools.oci.pushed.layer import DataLayer, LayerForm, write_layer
from cfstools.progress import SILENT
from cfstools.streams.decompress import open_compressed
from cfstools.streams.limits import DecompressionLimits, TarLimits
from cfstools.tree.copying import settle_links
from cfstools.tree.layers import LayeredTree
from cfstools.tree.model import Content, Directory, External, HardLink, RegularFile, Socket
from cfstools.tree.walk import iter_directories, iter_inodes
from cfstools.verity import digest_bytes, object_path
from tests.strategies import trees

CONTENTS: dict[bytes, bytes] = {}
"""Every object's bytes by its digest."""


def external(data: bytes) -> External:
    digest = digest_bytes(data)
    CONTENTS[digest] = data
    return External(digest, object_path(digest))


def contents_of(file: RegularFile) -> Iterator[bytes]:
    content = file.content
    assert isinstance(content, bytes | External)
    data = content if isinstance(content, bytes) else CONTENTS[content.digest or b""]
    for start in range(0, len(data), 3000):
        yield data[start : start + 3000]


def _fitted(root: Directory) -> Directory:
    for directory in iter_directories(root):
        directory.entries = {
            name: entry
            for name, entry in directory.entries.items()
            if not isinstance(entry.inode if isinstance(entry, HardLink) else entry, Socket)
            and not name.startswith(b".wh.")
        }
    settle_links(root)  # the primary name of an inode may have gone
    for inode in iter_inodes(root):
        inode.mtime_sec = max(min(inode.mtime_sec, 2**40), -(2**40))
        inode.mtime_nsec %= 1_000_000_000
        inode.xattrs = MappingProxyType(
            {key: value for key, value in inode.xattrs.items() if b"=" not in key and b"posix_acl" not in key}
        )
        if isinstance(inode, RegularFile) and (inode.size > 64 or isinstance(inode.content, External)):
            size = inode.size % 5000 + 65
            data = hashlib.shake_128(str(inode.size).encode()).digest(size)
            inode.size, inode.content = size, external(data)
    return root


layer_trees = trees(plain=True, max_entries=20).map(_fitted)
tree_pairs = st.tuples(layer_trees, layer_trees)


def write(root: Directory, **form: Any) -> tuple[bytes, DataLayer]:
    """The blob, and what is known of it."""
    blob = io.BytesIO()
    layer = write_layer(root, contents_of, blob.write, LayerForm(**form))
    return blob.getvalue(), layer


def read(*blobs: bytes) -> Directory:
    """The tree of these layers, base first, contents as in :data:`CONTENTS`."""
    tree = LayeredTree()
    options = LayerOptions(xattrs=XattrKeeper(KeptXattrs.ALL), tar_limits=TarLimits())
    for number, blob in enumerate(blobs):
        layer = tree.layer(f"layer {number}")
        read_layer(
            io.BytesIO(blob).read,
            LayerSource(path=f"layer {number}"),
            layer,
            options=options,
            limits=DecompressionLimits(),
            content=_content,
            progress=SILENT,
            on_warning=lambda *_: None,
        )
        layer.apply()
    return tree.finish()


def _content(reader: TarReader, member: Member) -> Content:
    data = reader.read_content(member)
    return external(data) if len(data) > 64 else data


def plain_of(blob: bytes) -> bytes:
    """What comes out of frames or members."""
    stream = open_compressed(io.BytesIO(blob).read)
    return b"".join(iter(lambda: stream.read(1 << 16), b""))
