"""A tree as a data layer: one tar, compressed so that each file's contents are frames of their own.

Members come in byte order, a directory before its children. Contents are cut into pieces of 256 KiB, each a zstd frame
or gzip member; what is between two contents is another. So a range of the blob is an object, whoever asks for it, and
``tar`` and ``zstd`` read the whole. The blob does not depend on the number of threads
(docs/distribution.md, "Data layers").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from cfstools import native
from cfstools.errors import OciError
from cfstools.formats.tar.writer import END, link_header, member_header, padding
from cfstools.oci.pushed.chunked import ChunkedIndex, NotChunked, Part, add_contents, entry_of
from cfstools.oci.pushed.layout import LAYER_GZIP, LAYER_ZSTD, SKIP, toc_digest_key
from cfstools.oci.pushed.ranges import pack_frames
from cfstools.progress import SILENT, Stage
from cfstools.streams.compress import piece_compressor
from cfstools.streams.decompress import Compression
from cfstools.text import shown_path
from cfstools.threadpool import map_ahead
from cfstools.tree.model import Device, Directory, External, Leaf, RegularFile, Socket
from cfstools.tree.walk import inode_of, iter_entries, linked_inodes
from cfstools.values import Value
from cfstools.verity import Algorithm, Params
from cfstools.verity.object_id import LARGE

PIECE = 1 << 18
_MARKER = b".wh."
_GLUE_MAX = 1 << 22
_BATCH = 1 << 20
_BATCH_PIECES = 512
_AHEAD = 4

ContentsOf = Callable[[RegularFile], Iterator[bytes]]
"""The contents of a file that is not empty, in order, in pieces of any length."""


class LayerForm(Value):
    """How a layer is written: zstd or gzip, its level, the algorithm of the image's digests, how many threads.

    Without *sockets* they are left out, not refused; *whiteouts* says that names of the tree may be markers.
    """

    compression: Compression = Compression.ZSTD
    level: int = 6
    algorithm: Algorithm = Algorithm.SHA256
    threads: int = 1
    sockets: bool = True

    whiteouts: bool = False

    @property
    def media_type(self) -> str:
        """The layer's media type."""
        return LAYER_ZSTD if self.compression is Compression.ZSTD else LAYER_GZIP


class DataLayer(Value):
    """A layer as written: digest and size of the blob, its DiffID, and where each object is: offset and length.

    *frames* says where lengths and leaves of the large ones are, which are read in parts.
    *notes* say what is in the layer otherwise than in the tree, or not at all.
    """

    media_type: str
    sha256: bytes
    size: int
    diff_id: str
    uncompressed_size: int
    members: int
    objects: dict[bytes, tuple[int, int]]
    frames: dict[bytes, int]
    annotations: dict[str, str]
    notes: tuple[str, ...]


class _File:
    """A file whose contents are on their way into the blob."""

    __slots__ = ("digest", "entry", "is_large", "leaves", "lengths", "offset", "parts", "sha256")

    def __init__(self, digest: bytes | None, *, is_large: bool) -> None:
        self.digest = digest
        self.is_large = is_large
        self.lengths: list[int] = []
        self.leaves: list[bytes] = []
        self.entry: dict[str, Any] | None = None
        self.offset = -1
        self.parts: list[Part] = []
        self.sha256 = ""


class _Piece:
    """Bytes of the tar that become one frame; *entries* are those of the TOC that are known with it."""

    __slots__ = ("data", "entries", "file", "last", "sha256")

    def __init__(self, data: bytes, file: _File | None = None, sha256: str = "", *, last: bool = False) -> None:
        self.data = data
        self.file = file
        self.sha256 = sha256
        self.last = last
        self.entries: list[dict[str, Any]] = []


def write_layer(
    root: Directory,
    contents: ContentsOf,
    write: Callable[[bytes], object],
    form: LayerForm,
    progress: Stage = SILENT,
) -> DataLayer:
    """Write the tree as one layer; *write* takes the blob in order, *progress* counts bytes of contents.

    Raises :class:`OciError` for names and contents that a layer cannot hold, ``TarError``, and what *contents* raises.
    """
    return _Writer(contents, write, form, progress).write(root)


class _Writer:
    def __init__(
        self, contents: ContentsOf, write: Callable[[bytes], object], form: LayerForm, progress: Stage
    ) -> None:
        self._contents = contents
        self._write = write
        self._form = form
        self._progress = progress
        self._compress = piece_compressor(form.compression, form.level)
        self._index = ChunkedIndex() if form.compression is Compression.ZSTD else None
        self._crc = _crc64()
        self._plain = hashlib.sha256()
        self._blob = hashlib.sha256()
        self._plain_size = 0
        self._at = 0
        self._members = 0
        self._objects: dict[bytes, tuple[int, int]] = {}
        self._frames: dict[bytes, int] = {}
        self._seen: set[bytes] = set()  # large objects
        self._glue = bytearray()
        self._padding = b""  # behind the contents last written
        self._entries: list[dict[str, Any]] = []  # of the members whose headers are in the glue
        self._notes: dict[str, int] = {}

    def write(self, root: Directory) -> DataLayer:
        compress = self._compress

        def packed(batch: list[_Piece]) -> list[tuple[_Piece, bytes, bytes]]:
            return [(piece, compress(piece.data), self._leaves(piece)) for piece in batch]

        threads = self._form.threads
        for batch in map_ahead(packed, self._batches(root), threads=threads, ahead=_AHEAD, name="layer"):
            for piece, frame, leaves in batch:
                self._append(piece, frame, leaves)
        annotations: dict[str, str] = {}
        if self._index is not None:
            frames, annotations = self._index.finish(self._at)
            self._emit(frames)
        return DataLayer(
            media_type=self._form.media_type,
            sha256=self._blob.digest(),
            size=self._at,
            diff_id=f"sha256:{self._plain.hexdigest()}",
            uncompressed_size=self._plain_size,
            members=self._members,
            objects=self._objects,
            frames=self._frames,
            annotations=annotations,
            notes=tuple(f"{text}: {count}" if count > 1 else text for text, count in self._notes.items()),
        )

    # The tar, as pieces

    def _batches(self, root: Directory) -> Iterator[list[_Piece]]:
        batch: list[_Piece] = []
        size = 0
        for piece in self._pieces(root):
            self._plain.update(piece.data)
            self._plain_size += len(piece.data)
            batch.append(piece)
            size += len(piece.data)
            if size >= _BATCH or len(batch) >= _BATCH_PIECES:
                yield batch
                batch, size = [], 0
        yield batch

    def _pieces(self, root: Directory) -> Iterator[_Piece]:
        linked = linked_inodes(root)
        names: dict[Leaf, bytes] = {}
        for path, own_name, entry in iter_entries(root):
            if own_name.startswith(_MARKER) and not self._form.whiteouts:
                raise OciError("a layer cannot hold this name: it would remove another", where=shown_path(path))
            inode = inode_of(entry)
            if isinstance(inode, Directory):
                name = b"./" if path == b"/" else path[1:] + b"/"
                self._member(name, inode, member_header(name, inode))
            elif isinstance(inode, Socket) and not self._form.sockets:
                self._note("a socket is left out")
            elif (first := names.get(inode)) is not None:
                self._member(path[1:], inode, link_header(path[1:], inode, first), first)
            else:
                if inode in linked:
                    names[inode] = path[1:]
                if isinstance(inode, RegularFile) and inode.size:
                    yield from self._file(path[1:], inode)
                    continue
                if isinstance(inode, Device) and inode.is_whiteout:
                    self._note("a character device 0:0, which overlayfs takes for a removed name")
                self._member(path[1:], inode, member_header(path[1:], inode))
            if len(self._glue) >= _GLUE_MAX:
                yield self._glued()
        self._indexed(lambda index: index.end(bytes(self._padding) + END))
        self._glue += END
        yield self._glued()

    def _member(self, name: bytes, inode: Directory | Leaf, headers: bytes, link: bytes | None = None) -> None:
        """A member without contents."""
        self._members += 1
        self._glue += headers

        def told(index: ChunkedIndex) -> None:
            self._entries.append(entry_of(name, inode, link))
            index.member(self._padding + headers, name, 0, 0)

        self._indexed(told)
        self._padding = b""

    def _file(self, name: bytes, inode: RegularFile) -> Iterator[_Piece]:
        """A member with contents, as the piece before them and theirs."""
        content = inode.content
        if isinstance(content, External) and content.digest is None:
            raise OciError("nothing is known of the contents but their object's path", where=shown_path(b"/" + name))
        headers = member_header(name, inode)
        digest = content.digest if isinstance(content, External) else None
        ranges = self._form.compression is Compression.ZSTD and digest is not None and inode.size > LARGE
        file = _File(digest, is_large=ranges and digest not in self._seen)
        if file.is_large and digest is not None:
            self._seen.add(digest)
        self._members += 1
        self._glue += headers

        def known(_: ChunkedIndex) -> None:
            file.entry = entry_of(name, inode)
            if digest is not None:
                file.entry[toc_digest_key(self._form.algorithm)] = digest.hex()

        self._indexed(known)
        yield self._glued()
        whole, crc, left = hashlib.sha256(), 0, inode.size
        for data in _cut(self._contents(inode), PIECE):
            left -= len(data)
            last = left <= 0
            if self._index is not None:
                whole.update(data)
                crc = self._crc(data, crc)
                alone = last and len(data) == inode.size
                file.sha256 = whole.hexdigest() if last else ""
                yield _Piece(data, file, file.sha256 if alone else hashlib.sha256(data).hexdigest(), last=last)
            else:
                yield _Piece(data, file, last=last)
            self._progress.advance(len(data))
        if left:
            raise OciError(f"{inode.size - left} bytes of contents instead of {inode.size}", where=shown_path(name))
        self._indexed(lambda index: index.member(self._padding + headers, name, inode.size, crc))
        self._padding = padding(inode.size)
        self._glue += self._padding

    def _glued(self) -> _Piece:
        """What is between two contents."""
        piece = _Piece(bytes(self._glue))
        piece.entries, self._entries = self._entries, []
        self._glue.clear()
        return piece

    def _indexed(self, tell: Callable[[ChunkedIndex], None]) -> None:
        """Tell the index of something; one that cannot say it is given up."""
        if self._index is None:
            return
        try:
            tell(self._index)
        except NotChunked as problem:
            self._give_up(problem)

    def _give_up(self, problem: NotChunked) -> None:
        self._index = None
        self._entries.clear()
        self._note(f"podman pulls this layer as a whole, for it has {problem}")

    def _note(self, text: str) -> None:
        self._notes[text] = self._notes.get(text, 0) + 1

    # The blob

    def _leaves(self, piece: _Piece) -> bytes:
        """The digests of the blocks of a piece of a large object."""
        if piece.file is None or not piece.file.is_large:
            return b""
        params = Params(algorithm=self._form.algorithm)
        return native.hash_blocks(params.algorithm.value, piece.data, params.block_size, b"")

    def _append(self, piece: _Piece, frame: bytes, leaves: bytes) -> None:
        start = self._at
        self._emit(frame)
        file, entries = piece.file, piece.entries
        if file is not None:
            if file.offset < 0:
                file.offset = start
            if self._index is not None:
                file.parts.append(Part(start, len(piece.data), piece.sha256))
            if file.is_large:
                file.lengths.append(len(frame))
                file.leaves.append(leaves)
            if piece.last:
                if file.digest is not None:
                    self._objects.setdefault(file.digest, (file.offset, self._at - file.offset))
                if file.entry is not None and self._index is not None:
                    chunks = add_contents(file.entry, file.sha256, file.parts, self._at)
                    entries = [file.entry, *chunks]
                self._emit_frames(file)
        self._indexed(lambda index: index.add_entries(entries))

    def _emit_frames(self, file: _File) -> None:
        """Behind the contents of a large object, what it takes to read parts of it."""
        if file.is_large and file.digest is not None:
            self._frames[file.digest] = self._at + SKIP.size
            self._emit(pack_frames(file.lengths, b"".join(file.leaves)))
            file.leaves.clear()

    def _emit(self, data: bytes) -> None:
        self._blob.update(data)
        self._at += len(data)
        self._write(data)


def _cut(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of *size*, the last one shorter."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _crc64() -> Callable[[bytes, int], int]:
    from fastcrc import crc64  # noqa: PLC0415 - only what is pushed needs it

    crc: Callable[[bytes, int], int] = crc64.go_iso
    return crc
