"""The composefs-dump(5) text: one line per file, which the format's tools exchange (composefs format, section 6)."""

from cfstools.formats.dump.parse import parse_dump

__all__ = ["parse_dump"]
