"""Pictures in the one folder that a server may read, named by ``file:`` URLs."""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote

from modelwright.errors import ConfigError
from modelwright.server.picture_bytes import too_large
from modelwright.server.wire.errors import ApiError

_HIDDEN = re.compile(r"%(?:2e|2f|5c|25|[01][0-9a-f]|7f)", re.IGNORECASE)
"""Dots, separators, percent signs and control characters that are written so that they do not look it."""
_PLAIN = re.compile(r"file:(?P<name>[^/\\?#\x00-\x20\x7f][^\\?#\x00-\x20\x7f]*)", re.IGNORECASE)


class PictureFolder:
    """Opens files inside a folder, and none that a link leads out of it.

    Args:
        folder: None where no file is read.

    Raises:
        ConfigError: it is no folder.
    """

    def __init__(self, folder: str | None):
        self._folder = None if folder is None else Path(folder).expanduser()
        if self._folder is not None and not self._folder.is_dir():
            raise ConfigError(f"picture_dir {folder} must be a folder, and there is none", field="picture_dir")

    def check(self, url: str, where: str) -> str:
        """The name that a URL gives, relative to the folder; nothing is opened.

        Raises:
            ApiError: no files are read, or the name is absolute or leads upwards, openly or in disguise.
        """
        if self._folder is None:
            message = f"{where}: this server reads no files; send the picture as a data: URL"
            raise ApiError(400, "invalid_value", message, param=where)
        match = _PLAIN.fullmatch(url)
        if match is None or _HIDDEN.search(url):
            raise _not_inside(where)
        name = unquote(match["name"])
        if any(part in ("", ".", "..") for part in name.split("/")) or os.path.isabs(name) or ":" in name:
            raise _not_inside(where)
        return name

    def read(self, name: str, most: int, where: str) -> bytes:
        """The bytes of a file that `check` let pass; a name that leads outside is told as one that does not exist.

        Raises:
            ApiError: it is no file inside the folder, or has more than `most` bytes.
        """
        assert self._folder is not None, "a checked name belongs to a folder"
        try:
            root = self._folder.resolve(strict=True)
            path = (root / name).resolve(strict=True)
            opened = _open_beneath(root, path.relative_to(root).parts)
            try:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise _not_inside(where)
                with open(opened, "rb", closefd=False) as file:
                    content = file.read(most + 1)
            finally:
                os.close(opened)
        except (OSError, ValueError, RuntimeError):  # RuntimeError of links that lead to each other
            raise _not_inside(where) from None
        if len(content) > most:
            raise too_large(where, f"the picture has more than the {most} bytes that are taken")
        return content


def _open_beneath(root: Path, parts: tuple[str, ...]) -> int:
    """Opens a file part by part and follows no link, so that none put there after the check leads outside."""
    if not parts:
        raise OSError("a folder is no picture")
    if os.open not in os.supports_dir_fd:  # Windows
        return os.open(root.joinpath(*parts), os.O_RDONLY)
    *folders, name = parts
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=held)
            os.close(held)
            held = inner
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=held)  # a pipe does not wait
    finally:
        os.close(held)


def _not_inside(where: str) -> ApiError:
    message = f"{where}: a file: URL must name a picture in the folder of pictures, as file:name.png does"
    return ApiError(400, "invalid_value", message, param=where)
