"""A strict tar reader on bytes (OCI reading, section 3.3)."""

from cfstools.formats.tar.layout import MemberType
from cfstools.formats.tar.member import Chunk, Member, SparseMap, TarWarning
from cfstools.formats.tar.reader import TarReader

__all__ = ["Chunk", "Member", "MemberType", "SparseMap", "TarReader", "TarWarning"]
