"""Pictures in a folder, each a row: for models that learn pixels."""

from collections.abc import Sequence
from pathlib import Path

from modelwright.data.examples import PictureRef, Place
from modelwright.data.rows import Row


class PictureFiles:
    """Pictures in the order of their names; a row's line is 1, because a file is one row."""

    format: str | None = "picture"

    def __init__(self, paths: Sequence[Path], shown: Sequence[str]):
        self.files = tuple(paths)
        self._shown = tuple(shown)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return Row(Place(self._shown[row], 1), PictureRef(str(self.files[row])), self.files[row].parent)
