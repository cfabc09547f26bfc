"""Files of any kind as rows by number: what holds them (containers), and nothing of what the rows mean."""

from modelwright.data.sources.opened import open_source

__all__ = ["open_source"]
