"""A conversation as the user of a terminal made it: what was said, and the opened pictures that were shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modelwright.cli.console import say
from modelwright.errors import RequestError
from modelwright.processing.images import count_frames, load_image
from modelwright.processing.messages import count_mismatch
from modelwright.serving.prompts import IMAGE


@dataclass(frozen=True)
class Picture:
    """An opened picture and where it came from."""

    path: Path
    image: Image.Image


@dataclass(frozen=True)
class Utterance:
    """One thing that was said; ``role`` is system, user or assistant."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()

    def message(self) -> dict[str, Any]:
        """The same in the official form of messages, with the pictures themselves."""
        shown = {"images": [picture.image for picture in self.pictures]} if self.pictures else {}
        return {"role": self.role, "content": self.text} | shown


def open_pictures(paths: Sequence[Path]) -> tuple[Picture, ...]:
    """The pictures in files; a RequestError names the first that is missing, too large or no picture.

    Of an animated one the first frame is shown, and said to be.
    """
    opened = tuple(Picture(path, load_image(path)) for path in paths)
    for path in paths:
        if (frames := count_frames(path)) > 1:
            say(f"modelwright: {path} is animated; the first of its {frames} frames is shown")
    return opened


def refuse_pictures(model: str, family: str, count: int) -> RequestError:
    """The error for pictures shown to a model that reads text only."""
    return RequestError(
        f"{model} is a {family} model, which reads text only, and it was given {count} picture{'s' * (count != 1)}"
    )


def ask(text: str, pictures: tuple[Picture, ...], reads_pictures: bool) -> Utterance:
    """A user's question: pictures come first, one to a line, unless the text says with ``<image>`` where they go.

    White space around the text is left out for models that read pictures, as officially, and else kept: it is the
    chat template's to judge.

    Raises:
        RequestError: the text holds placeholders, and not as many as there are pictures.
    """
    if not reads_pictures:
        return Utterance("user", text, pictures)
    text = text.strip()
    placeholders = text.count(IMAGE)
    if placeholders == 0:
        return Utterance("user", f"{IMAGE}\n" * len(pictures) + text, pictures)
    if placeholders != len(pictures):
        raise count_mismatch("the prompt", placeholders, len(pictures), IMAGE)
    return Utterance("user", text, pictures)
