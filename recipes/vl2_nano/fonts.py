"""Finds the typefaces that cards are set in, among those the machine has; nothing is fetched.

Training wants variety. On Debian or Ubuntu these packages give about 130 faces: fonts-dejavu fonts-liberation
fonts-freefont-ttf fonts-roboto-unhinted fonts-open-sans fonts-hack fonts-lato fonts-inconsolata fonts-croscore
fonts-crosextra-carlito fonts-crosextra-caladea fonts-noto-mono fonts-firacode fonts-cantarell fonts-jetbrains-mono
fonts-comic-neue fonts-urw-base35. Folders named in the environment variable VL2_NANO_FONTS are searched as well.
Without any of them Pillow's own typeface is left, and everything works with that one.
"""

import importlib.util
import os
import re
import string
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ALPHABET = string.digits + string.ascii_uppercase
FAMILIES = (
    "DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "LiberationSans", "LiberationSerif", "LiberationMono", "FreeSans",
    "FreeSerif", "FreeMono", "Roboto", "OpenSans", "Hack", "Lato", "Inconsolata", "Arimo", "Tinos", "Cousine",
    "Carlito", "Caladea", "NotoMono", "NotoSansMono", "FiraCode", "Cantarell", "JetBrainsMono", "ComicNeue",
    "NimbusSans", "NimbusRoman", "NimbusMonoPS", "C059", "P052", "URWBookman", "URWGothic",
)  # fmt: skip
_FAINT = re.compile(r"Thin|Hairline|ExtraLight|Math", re.IGNORECASE)
_SLANTED = re.compile(r"Italic|Oblique|BdIta", re.IGNORECASE)


def families(exclude: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Usable font files by family, without the families named in ``exclude``; the same machine gives the same order."""
    unwanted = frozenset(exclude)
    return {family: files for family, files in _installed().items() if family not in unwanted}


def fonts(exclude: Iterable[str] = ()) -> tuple[str, ...]:
    """Paths of every usable font file, without the families named in ``exclude``."""
    return tuple(file for files in families(exclude).values() for file in files)


def is_slanted(file: str) -> bool:
    """Whether the file's name says italic or oblique."""
    return bool(_SLANTED.search(Path(file).name))


def face(file: str | None, size: float) -> ImageFont.FreeTypeFont:
    """The font in ``file`` at ``size`` pixels to the em; None is the typeface that Pillow carries."""
    if file is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType; cards need scalable text")
        return font
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def capital_height(file: str | None) -> float:
    """Height of a capital H, in ems."""
    _, top, _, bottom = face(file, 100).getbbox("H")
    return (bottom - top) / 100


@cache
def _installed() -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, str]] = {}
    for folder in _folders():
        for path in sorted(folder.rglob("*")):
            family = path.stem.split("-")[0].replace("Condensed", "").replace("Narrow", "")
            family = re.sub(r"(Bold|Oblique|Italic)+$", "", family)
            if path.suffix.lower() in (".ttf", ".otf") and family in FAMILIES and not _FAINT.search(path.name):
                found.setdefault(family, {}).setdefault(path.stem, str(path))
    usable: dict[str, tuple[str, ...]] = {}
    for family, files in sorted(found.items()):
        usable[family] = tuple(file for _, file in sorted(files.items()) if _draws_alphabet(file))
    return {family: files for family, files in usable.items() if files}


def _folders() -> list[Path]:
    named = [Path(part) for part in os.environ.get("VL2_NANO_FONTS", "").split(os.pathsep) if part]
    home = Path.home()
    usual = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        usual.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    return [folder for folder in named + usual if folder.is_dir()]


def _draws_alphabet(file: str) -> bool:
    """Whether digits and capitals each have a glyph of their own (a missing one is drawn as the same empty box)."""
    try:
        font = face(file, 40)
        glyphs = {_glyph(font, character) for character in ALPHABET}
        return len(glyphs) == len(ALPHABET) and _glyph(font, "\uf8fe") not in glyphs
    except OSError:
        return False


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    tile = Image.new("L", (80, 80))
    ImageDraw.Draw(tile).text((20, 10), character, fill=255, font=font)
    return tile.tobytes()
