"""What a path is recognised as."""

from __future__ import annotations

from cfstools.sources.recognise import recognise
from cfstools.sources.source import SourceKind


def kind_of(path: bytes) -> SourceKind:
    with recognise(path) as source:
        return source.kind
