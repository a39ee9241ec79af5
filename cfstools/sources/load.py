"""Sources as trees with all digests, in memory: for verbs that write nothing."""

from __future__ import annotations

from cfstools.sources.source import Reading, Source, SourceTree
from cfstools.store.ingest import ingest
from cfstools.verity import Algorithm, Params


def load(source: Source, reading: Reading, *, threads: int) -> SourceTree:
    """The whole tree of *source*; files of a directory are digested. Raises CfsError of all kinds, naming the path."""
    params = Params(algorithm=reading.algorithm or Algorithm.SHA256)
    with source.open(reading) as tree:
        if tree.blobs is not None:
            ingest(tree.root, tree.blobs, None, params=params, threads=threads, progress=reading.progress)
    return tree
