"""Pictures that rows name: where they lie, and whether they may be opened; they are decoded by whoever needs them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import ExifTags, Image

from modelwright.data.examples import BrokenRow, PictureRef, Place
from modelwright.data.formats.fields import broken, shown
from modelwright.data.rows import Row
from modelwright.errors import RequestError
from modelwright.processing.data_urls import is_data_url
from modelwright.processing.images import load_image

_TURNED = (5, 6, 7, 8)
"""EXIF orientations in which a picture lies on its side."""
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""Addresses; a single letter before the colon is a Windows drive."""


@dataclass(frozen=True)
class PictureFolder:
    """Where the pictures of rows may lie.

    Attributes:
        root: paths are relative to it, and none may leave it. None: they are relative to the file of their row, and
            may lead anywhere.
    """

    root: Path | None = None

    def find(self, row: Row, given: Any, detail: str | None = None) -> PictureRef:
        """The picture that a row gives: a path, a ``file:`` or ``data:`` URL, bytes, or a mapping with one of these.

        Raises:
            BrokenRow: it is somewhere else on the network, outside of ``root``, or not there.
        """
        if isinstance(given, Mapping):
            content = given.get("bytes")
            given = given.get("path", given.get("url")) if content is None else content
        if isinstance(given, bytes):
            return PictureRef(given, detail)
        if not isinstance(given, str) or not given:
            raise broken(row, f"a picture must be a path, a data: URL or bytes, got {shown(given)}")
        if given in row.members:
            return PictureRef(row.members[given], detail)
        if is_data_url(given):
            return PictureRef(given, detail)
        return PictureRef(str(self._path(row, given)), detail)

    def _path(self, row: Row, given: str) -> Path:
        path = given
        if given.lower().startswith("file:/"):
            path = url2pathname(urlsplit(given).path)
        elif _REMOTE.match(given):
            raise broken(row, f"pictures are not fetched from the network ({shown(given)}): save them as files")
        start = self.root if self.root is not None else row.folder
        if start is None and not os.path.isabs(path):
            raise broken(row, f"the picture {shown(given)} is relative to no folder: name one in data.root")
        found = Path(os.path.normpath(os.path.join(start or "", path)))
        if self.root is not None and not found.is_relative_to(os.path.normpath(self.root)):
            raise broken(row, f"the picture {shown(given)} lies outside of data.root, {self.root}")
        try:
            if found.is_file():
                return found
        except (OSError, ValueError):  # a name that is too long, or holds a zero byte
            pass
        raise broken(row, f"no such picture: {shown(given)}" + ("" if os.path.isabs(path) else f" in {start}"))


def open_picture(picture: PictureRef, place: Place) -> Image.Image:
    """The decoded picture, upright and in RGB.

    Raises:
        BrokenRow: it is none, is damaged, or is larger than `processing.images.MAX_PIXELS`.
    """
    try:
        return load_image(picture.source)
    except RequestError as error:
        raise BrokenRow(place, str(error)) from error


def upright_size(row: Row, picture: PictureRef) -> tuple[int, int]:
    """(width, height) of a picture as it is seen, by its header alone where that says so."""
    if isinstance(picture.source, str) and not is_data_url(picture.source):
        try:
            with Image.open(picture.source) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
                return (image.height, image.width) if turned else (image.width, image.height)
        except Exception:  # the reason is told by the one reader of pictures
            pass
    return open_picture(picture, row.place).size
