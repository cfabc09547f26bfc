"""The command line: one lazy file per command; the only room that prints."""
