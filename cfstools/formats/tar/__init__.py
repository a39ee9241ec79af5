"""A strict tar reader on bytes (OCI reading, section 3.3)."""

from cfstools.formats.tar.layout import MemberType
from cfstools.formats.tar.member import Member, SparseMap, TarWarning
from cfstools.formats.tar.reader import TarReader
from cfstools.formats.tar.stream import Chunk

__all__ = ["Chunk", "Member", "MemberType", "SparseMap", "TarReader", "TarWarning"]
