"""A strict tar reader on bytes (OCI reading, section 3.3)."""

from cfstools.oci.tar.layout import MemberType
from cfstools.oci.tar.member import Member, SparseMap, TarWarning
from cfstools.oci.tar.reader import TarReader
from cfstools.oci.tar.stream import Chunk

__all__ = ["Chunk", "Member", "MemberType", "SparseMap", "TarReader", "TarWarning"]
