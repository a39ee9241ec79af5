"""A strict tar reader on bytes (docs/oci.md, "Headers of tar archives")."""

from cfstools.formats.tar.layout import MemberType
from cfstools.formats.tar.member import Chunk, Member, SparseMap, TarWarning
from cfstools.formats.tar.reader import TarReader

__all__ = ["Chunk", "Member", "MemberType", "SparseMap", "TarReader", "TarWarning"]
