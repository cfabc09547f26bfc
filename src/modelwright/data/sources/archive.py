"""WebDataset: a tar of samples, each a run of files that share a name up to its first dot; nothing is unpacked."""

import tarfile
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from modelwright.data.examples import BrokenRow, Place
from modelwright.data.rows import Row
from modelwright.data.sources.kept import Kept
from modelwright.data.sources.lines import parse_row, parse_words
from modelwright.errors import RequestError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif")
"""Ends of the names of pictures, without the dot."""
_WORDS = {"txt": "text", "text": "text", "caption": "caption", "transcript": "text"}
"""Ends of the names of words, with the name under which they stand in the row."""


class Member(NamedTuple):
    """A file of the archive: its sample, what its name ends in, its name without folders, and where its bytes are."""

    sample: str
    end: str
    name: str
    start: int
    size: int


class WebDataset:
    """The samples of an archive, in order; a row's line is the sample's number from 1.

    A sample's ``json`` gives the names and values of its row, words (``txt``, ``caption``) one more, and its pictures
    stand under ``image``, or ``images`` where there are several, unless the row names them itself.

    Raises:
        RequestError: the file is no archive, or a sample holds two files of one kind.
    """

    format: str | None = None

    def __init__(self, path: Path, shown: str, kept: Kept):
        self.files = (path,)
        self._shown = shown
        self._stored = kept.opened(path)
        try:
            with self._stored.open() as file, tarfile.open(fileobj=file, mode="r:") as archive:
                members = [_member(info) for info in archive if info.isfile() and not _hidden(info.name)]
        except (tarfile.TarError, EOFError) as error:
            raise RequestError(f"{shown} is no tar file that can be read: {error}") from error
        self._samples = [tuple(run) for _, run in groupby(members, key=lambda member: member.sample)]
        for number, sample in enumerate(self._samples):
            ends = [member.end for member in sample]
            twice = next((end for end in ends if ends.count(end) > 1), None)
            if twice is not None:
                raise RequestError(f"{shown}:{number + 1}: the sample {sample[0].sample} has two files named .{twice}")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        place = Place(self._shown, row + 1)
        values: dict[str, object] = {}
        pictures: dict[str, bytes] = {}
        for member in self._samples[row]:
            kind = member.end.rpartition(".")[2]
            if kind == "json":
                values |= parse_row(place, self._read(place, member))
            elif kind in _WORDS:
                values[_WORDS[kind]] = parse_words(place, self._read(place, member))
            elif kind in PICTURES:
                pictures[member.name] = self._read(place, member)
        if pictures and not {"image", "images"} & values.keys():
            several = len(pictures) > 1
            values["images" if several else "image"] = [*pictures] if several else next(iter(pictures))
        if not values:
            raise BrokenRow(place, f"the sample {self._samples[row][0].sample} has no .json, no words and no picture")
        by_end = {member.end: pictures[member.name] for member in self._samples[row] if member.name in pictures}
        return Row(place, values, None, by_end | pictures)

    def _read(self, place: Place, member: Member) -> bytes:
        content = self._stored.read(member.start, member.start + member.size)
        if len(content) < member.size:
            raise BrokenRow(place, f"the archive ends inside of {member.name}")
        return content


def _member(info: tarfile.TarInfo) -> Member:
    path = PurePosixPath(info.name)
    stem, _, end = path.name.partition(".")
    return Member(str(path.with_name(stem)), end.lower(), path.name, info.offset_data, info.size)


def _hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".") or "__MACOSX" in name
