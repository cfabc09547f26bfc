"""What rows mean: the formats that instruction data is published in, each read into the values of `examples`."""

from modelwright.data.formats.table import FORMATS, Reader, find_format, parsed, reader_of, unread

__all__ = ["FORMATS", "Reader", "find_format", "parsed", "reader_of", "unread"]
