"""A font that has every character of a text: Pillow's own, or else one that the system has."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "C:/Windows/Fonts",
)
"""Where systems keep fonts."""
WIDE = ("cjk", "noto", "unicode", "wqy", "pingfang", "msyh", "gothic", "dejavu")
"""Parts of the names of fonts that have many characters, which are looked at first."""
STYLED = ("bold", "italic", "oblique", "mono", "light", "math", "condensed", "serif")
"""Parts of the names of fonts that are looked at last."""
MOST = 400
"""Files that are looked at."""
_NOWHERE = "\U0010ffff"
"""A character that no font has."""


def font_for(text: str, size: int) -> tuple[Font, str]:
    """A font of so many pixels and the text to be drawn by it.

    Where no font has all of the characters, those that are missing are written as escapes, such as ``\\u4e2d``.
    """
    own = ImageFont.load_default(size=size)
    missing = "".join(sorted({character for character in text if not has(own, character)}))
    if not missing:
        return own, text
    path = _find("".join(sorted(set(text))), tuple(FOLDERS))
    if path is not None:
        return ImageFont.truetype(path, size), text
    escapes = {ord(character): character.encode("ascii", "backslashreplace").decode() for character in missing}
    return own, text.translate(escapes)


def has(font: Font, character: str) -> bool:
    """Whether a font has a character: what it draws is not what it draws for one that no font has."""
    if character.isspace() or not isinstance(font, ImageFont.FreeTypeFont):
        return character.isascii() or character.isspace()
    return _drawn(font, character) != _drawn(font, _NOWHERE)


@lru_cache(maxsize=64)
def _find(characters: str, folders: tuple[str, ...]) -> Path | None:
    for path in _files(folders):
        try:
            font = ImageFont.truetype(path, 16)
        except OSError:  # no font, or a damaged one
            continue
        if all(has(font, character) for character in characters):
            return path
    return None


def _files(folders: tuple[str, ...]) -> list[Path]:
    def rank(path: Path) -> tuple[bool, int, str]:
        name = path.name.lower()
        styled = any(part in name for part in STYLED)
        return styled, next((place for place, part in enumerate(WIDE) if part in name), len(WIDE)), name

    return sorted(_fonts(folders), key=rank)[:MOST]


def _fonts(folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        for place, _, names in os.walk(os.path.expanduser(folder)):
            yield from (Path(place, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc")))


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(character))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
    return image.size, image.tobytes()
