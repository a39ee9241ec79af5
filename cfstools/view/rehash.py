"""Contents known by another digest: what two trees with digests of different algorithms are compared by."""

from __future__ import annotations

from collections.abc import Iterator

from cfstools.errors import CheckFailed, ObjectMissing
from cfstools.progress import SILENT, Progress, Stage, running_stage
from cfstools.threadpool import map_ahead
from cfstools.tree import Directory, External, RegularFile
from cfstools.tree.copying import copy_tree
from cfstools.tree.walk import iter_entries, iter_inodes
from cfstools.verity import Algorithm, MerkleHasher, Params, object_path
from cfstools.view.nodes import View

_AHEAD = 4  # files waiting for each thread

_Key = tuple[bytes | None, bytes | None, int]  # digest, payload, size


def rehash(view: View, algorithm: Algorithm, *, threads: int = 1, progress: Progress = SILENT) -> Directory:
    """The tree of *view* with digests of *algorithm* for all objects that its stores have.

    They are read once each, and compared with the digest that the tree names. What the stores do not have stays as it
    is; a tree that names all its objects by *algorithm* comes back itself. Raises CheckFailed for an object that is
    damaged, and StoreError.
    """
    wanted = dict(_foreign(view.root, algorithm))
    if not wanted:
        return view.root
    with running_stage(progress, "digest", sum(size for _, _, size in wanted), "B") as stage:

        def digest(item: tuple[_Key, tuple[RegularFile, bytes]]) -> tuple[_Key, bytes | None]:
            key, (file, path) = item
            return key, _digest(view, file, path, algorithm, stage)

        digests = dict(map_ahead(digest, wanted.items(), threads=threads, ahead=_AHEAD, name="digest"))
    root = copy_tree(view.root)
    for inode in iter_inodes(root):
        if isinstance(inode, RegularFile) and isinstance(inode.content, External):
            found = digests.get(_key(inode, inode.content))
            if found is not None:
                inode.content = _renamed(inode.content, found)
    return root


def count_missing(view: View, algorithm: Algorithm) -> int:
    """How many objects :func:`rehash` would leave as they are because no store has their digest. Raises StoreError."""
    digests = {digest for (digest, _, _), _ in _foreign(view.root, algorithm) if digest is not None}
    return sum(view.stores.size(digest) is None for digest in digests)


def _foreign(root: Directory, algorithm: Algorithm) -> Iterator[tuple[_Key, tuple[RegularFile, bytes]]]:
    """The objects that are not named by *algorithm*, with a file that needs each and its path."""
    for path, _, entry in iter_entries(root):
        if isinstance(entry, RegularFile) and isinstance(entry.content, External) and entry.size:
            digest, payload = entry.content.digest, entry.content.payload
            named = digest is not None or payload is not None
            if named and (digest is None or len(digest) != algorithm.digest_size):
                yield _key(entry, entry.content), (entry, path)


def _key(file: RegularFile, content: External) -> _Key:
    return content.digest, content.payload, file.size


def _digest(view: View, file: RegularFile, path: bytes, algorithm: Algorithm, stage: Stage) -> bytes | None:
    """The digest of a file's contents by *algorithm*; ``None`` where no store has them."""
    hasher = MerkleHasher(Params(algorithm=algorithm))
    try:
        with view.open(file, path) as contents:
            for piece in contents.pieces():
                hasher.update(piece)
                stage.advance(len(piece))
    except CheckFailed as error:
        if isinstance(error.__cause__, ObjectMissing):
            return None
        raise
    return hasher.digest()


def _renamed(content: External, digest: bytes) -> External:
    """The same contents by *digest*; a path that was only the digest's follows it."""
    old, payload = content.digest, content.payload
    by_digest = old is not None and payload is not None and payload.lstrip(b"/") == object_path(old)
    return External(digest, object_path(digest) if by_digest else payload)
