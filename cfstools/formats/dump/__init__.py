"""The composefs-dump(5) text: one line per name, as the format's tools exchange it (composefs format, section 6)."""

from cfstools.formats.dump.parse import parse_dump
from cfstools.formats.dump.print import directory_data_size, dump_text, print_dump

__all__ = ["directory_data_size", "dump_text", "parse_dump", "print_dump"]
