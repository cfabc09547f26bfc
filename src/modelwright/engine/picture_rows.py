"""`PictureRows`, the rows that pictures become, made outside the decoder's steps and kept for prompts that repeat."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from modelwright.engine.prompt import PromptPicture


class EncodesPictures(Protocol):
    """A model that turns pictures into rows of its decoder's input."""

    def encode_pictures(self, tiles: Tensor, crops: list[tuple[int, int]]) -> list[Tensor]:
        """Each picture's rows ``[rows, hidden]``.

        Args:
            tiles: ``[tiles, 3, side, side]``, those of all pictures one after the other, global views first.
            crops: each picture's local tiles, ``(width, height)``.
        """
        ...


class PictureRows:
    """Rows ``[rows, hidden]`` by a picture's key; the `kept` pictures that were asked for last stay."""

    def __init__(self, model: EncodesPictures, kept: int):
        self.encoded = 0
        self._model, self._kept = model, kept
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    def of(self, pictures: Iterable[PromptPicture]) -> list[Tensor]:
        """The rows of each; what is not kept is encoded, one picture at a time and a bounded number of tiles at once.

        The model's ``vision_batch_size`` is that bound.
        """
        found = []
        for picture in pictures:
            if picture.key not in self._rows:
                self._rows[picture.key] = self._encode(picture)
            self._rows.move_to_end(picture.key)
            found.append(self._rows[picture.key])
        while len(self._rows) > self._kept:
            self._rows.popitem(last=False)
        return found

    def __contains__(self, key: bytes) -> bool:
        """Whether the rows of a picture are kept."""
        return key in self._rows

    def forget(self) -> None:
        """Encode every picture anew."""
        self._rows.clear()

    def _encode(self, picture: PromptPicture) -> Tensor:
        self.encoded += 1
        return self._model.encode_pictures(picture.tiles, [picture.crop])[0]
