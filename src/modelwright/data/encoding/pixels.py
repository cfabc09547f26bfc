"""Pictures as documents, for an ImageGPT: a start token and every pixel's index in the palette."""

from typing import Any

import numpy as np

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding.learning import Room, refuse
from modelwright.data.examples import Example, Picture
from modelwright.errors import RequestError
from modelwright.processing.images import load_image
from modelwright.processing.pixels import Pixels


class PixelEncoder:
    """Documents by a model's palette. All are of one length, so that packing them would bring nothing.

    Args:
        pixels: the model's pixels.
        room: how many pixels a picture may have; it is never cut.
    """

    packs = False

    def __init__(self, pixels: Pixels, room: Room):
        self.pixels, self.room = pixels, room
        pixels.settings.require_clusters()
        self.pad_id = 0

    def __call__(self, example: Example) -> Document:
        """See `Encoder`."""
        content: Any = example.content
        try:
            if not isinstance(content, Picture):
                raise RequestError("the row is not a picture alone, and the model learns the pixels of pictures")
            row = self.pixels.encode(self.pixels.fit([load_image(content.picture.source)]))[0]
        except RequestError as error:
            raise refuse(example.place, error) from error
        ids = np.concatenate([[self.pixels.start_token], row])
        labels = np.concatenate([[UNLEARNED], row])
        return self.room.fitted(Document(ids, labels, example.place, reads_last=False))

    outline = __call__
