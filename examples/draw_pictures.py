"""Draw the pictures the demo and the README use: a scene of shapes, a card, and a digit; no model is involved.

Usage: python examples/draw_pictures.py [FOLDER], by default the folder of the committed pictures.
"""

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PICTURES = Path(__file__).parent / "pictures"
SMOOTH = 4  # shapes are drawn this many times larger and shrunk, which smooths their edges


def star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The ten corners of an upright five-pointed star around ``(x, y)``, in pixels."""
    radii = [radius, radius * 0.42] * 5
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def shapes() -> Image.Image:
    """A red circle, a blue star, a green square and a yellow triangle on a light ground, 448 x 320."""
    picture = Image.new("RGB", (448 * SMOOTH, 320 * SMOOTH), (241, 240, 234))
    draw = ImageDraw.Draw(picture)

    def scaled(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * SMOOTH, y * SMOOTH) for x, y in points]

    draw.ellipse(scaled([(40, 44), (146, 150)]), fill=(220, 40, 40))
    draw.polygon(scaled(star(300, 104, 62)), fill=(40, 80, 220))
    draw.rectangle(scaled([(104, 196), (190, 282)]), fill=(40, 160, 70))
    draw.polygon(scaled([(352, 180), (404, 276), (300, 276)]), fill=(245, 205, 40))
    return picture.resize((448, 320), Image.Resampling.LANCZOS)


def card() -> Image.Image:
    """A card that reads B7X2, dark blue on cream, 320 x 192."""
    picture = Image.new("RGB", (320, 192), (250, 246, 232))
    ImageDraw.Draw(picture).text((160, 96), "B7X2", fill=(28, 44, 96), font=ImageFont.load_default(88), anchor="mm")
    return picture


def seven() -> Image.Image:
    """The digit 7 in coral strokes on cream, 240 x 240."""
    picture = Image.new("RGB", (240 * SMOOTH, 240 * SMOOTH), (250, 246, 235))
    corners = [(70 * SMOOTH, 52 * SMOOTH), (172 * SMOOTH, 52 * SMOOTH), (108 * SMOOTH, 190 * SMOOTH)]
    draw = ImageDraw.Draw(picture)
    draw.line(corners, fill=(229, 78, 66), width=26 * SMOOTH)
    for x, y in corners:  # round ends and a round corner
        draw.ellipse([x - 13 * SMOOTH, y - 13 * SMOOTH, x + 13 * SMOOTH, y + 13 * SMOOTH], fill=(229, 78, 66))
    return picture.resize((240, 240), Image.Resampling.LANCZOS)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("shapes.png", shapes()), ("card.png", card()), ("seven.png", seven())):
        picture.save(folder / name, optimize=True)
        print(f"{folder / name}: {picture.width} x {picture.height}")


if __name__ == "__main__":
    main()
