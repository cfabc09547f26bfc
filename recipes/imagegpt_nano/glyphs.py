"""The outlines of ten digits and six shapes in the unit square, a little different each time; no pixels, no colours.

Points are ``(x, y)`` with y downwards. The halves of a digit meet at or above the middle, so that what tells 8 from
9 and 2 from 3 stands in the upper half.
"""

from collections.abc import Callable

import numpy as np

Line = np.ndarray
"""float64 ``[points, 2]``: a polyline, or a polygon where its first point follows the last."""

DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
LABELS = DIGITS + SHAPES
"""The name of each label; a digit's label is its value."""


def digit(rng: np.random.Generator, value: int) -> list[Line]:
    """The strokes of a handwritten digit."""
    return _DIGITS[value](rng)


def shape(name: str) -> Line:
    """The boundary of a shape, closed."""
    return _SHAPES[name]


def arc(centre: tuple[float, float], radii: tuple[float, float], start: float, end: float) -> Line:
    """Part of an ellipse, clockwise in degrees from the right."""
    angles = np.radians(np.linspace(start, end, 2 + int(abs(end - start) / 20)))
    return np.array(centre) + np.array(radii) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def curve(start: tuple[float, float], pull: tuple[float, float], end: tuple[float, float]) -> Line:
    """A quadratic Bezier curve."""
    t = np.linspace(0, 1, 9)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(pull) + t**2 * np.array(end)


def _line(*points: tuple[float, float]) -> Line:
    return np.array(points)


def _near(rng: np.random.Generator, value: float, reach: float) -> float:
    return value + rng.uniform(-reach, reach)


def _zero(rng: np.random.Generator) -> list[Line]:
    return [arc((0.5, 0.5), (_near(rng, 0.46, 0.04), 0.5), 0, 360)]


def _one(rng: np.random.Generator) -> list[Line]:
    x, flag = _near(rng, 0.55, 0.05), rng.uniform(0.18, 0.3)
    strokes = [_line((x - rng.uniform(0.3, 0.45), flag), (x, 0), (x, 1))]
    if rng.random() < 0.3:
        strokes.append(_line((x - 0.35, 1), (x + 0.35, 1)))
    return strokes


def _two(rng: np.random.Generator) -> list[Line]:
    ry = _near(rng, 0.27, 0.02)
    bow = arc((0.5, ry), (_near(rng, 0.44, 0.03), ry), _near(rng, 190, 12), _near(rng, 395, 8))
    return [np.concatenate([bow, _line((_near(rng, 0.06, 0.04), 1), (0.96, 1))])]


def _three(rng: np.random.Generator) -> list[Line]:
    middle = _near(rng, 0.46, 0.015)
    if rng.random() < 0.15:  # flat above
        upper = _line((0.08, 0), (0.88, 0), (0.45, middle - 0.06))
        middle -= 0.06
    else:
        upper = arc((0.45, middle / 2), (_near(rng, 0.43, 0.03), middle / 2), _near(rng, 205, 12), 450)
    low = (1 - middle) / 2
    return [upper, arc((0.45, 1 - low), (_near(rng, 0.5, 0.03), low), 270, _near(rng, 515, 12))]


def _four(rng: np.random.Generator) -> list[Line]:
    stem, bar = _near(rng, 0.7, 0.05), _near(rng, 0.66, 0.04)
    if rng.random() < 0.35:  # open above
        bar -= 0.1
        return [_line((0.25, 0), (0.06, bar), (1, bar)), _line((stem + 0.03, _near(rng, 0.15, 0.12)), (stem, 1))]
    return [_line((stem, 1), (stem, 0), (0.02, bar), (1, bar))]


def _five(rng: np.random.Generator) -> list[Line]:
    top = _near(rng, 0.42, 0.02)
    belly = arc((0.44, 0.68), (_near(rng, 0.5, 0.03), 0.32), 228, _near(rng, 508, 12))
    return [_line((_near(rng, 0.9, 0.05), 0), (0.17, 0), (0.12, top)), np.concatenate([_line((0.12, top)), belly])]


def _six(rng: np.random.Generator) -> list[Line]:
    ry = _near(rng, 0.29, 0.02)
    back = curve((_near(rng, 0.82, 0.06), 0), (_near(rng, 0.08, 0.06), 0.12), (0.05, 1 - ry))
    return [back, arc((0.5, 1 - ry), (0.45, ry), 0, 360)]


def _seven(rng: np.random.Generator) -> list[Line]:
    foot = _near(rng, 0.38, 0.07)
    strokes = [_line((0.03, 0), (0.96, 0), (foot, 1))]
    if rng.random() < 0.2:
        strokes.append(_line((0.35, 0.48), (0.95, 0.48)))
    return strokes


def _eight(rng: np.random.Generator) -> list[Line]:
    waist = _near(rng, 0.45, 0.02)
    low = (1 - waist) / 2
    return [
        arc((0.5, waist / 2), (_near(rng, 0.39, 0.03), waist / 2), 0, 360),
        arc((0.5, 1 - low), (_near(rng, 0.48, 0.02), low), 0, 360),
    ]


def _nine(rng: np.random.Generator) -> list[Line]:
    ry = _near(rng, 0.25, 0.015)
    loop = arc((0.47, ry), (0.44, ry), 0, 360)
    if rng.random() < 0.5:
        return [loop, _line((0.91, ry), (_near(rng, 0.82, 0.08), 1))]
    return [loop, curve((0.91, ry), (0.95, 0.95), (_near(rng, 0.15, 0.08), 1))]


_DIGITS: tuple[Callable[[np.random.Generator], list[Line]], ...] = (
    _zero, _one, _two, _three, _four, _five, _six, _seven, _eight, _nine,
)  # fmt: skip


def _star() -> Line:
    angles = np.radians(np.arange(11) * 36 - 90)
    reach = np.where(np.arange(11) % 2 == 0, 0.54, 0.23)[:, None]
    return np.array((0.5, 0.53)) + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross() -> Line:
    a, b = 0.33, 0.67
    corners = ((a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a), (a, 0))
    return _line(*corners)


def _heart() -> Line:
    t = np.linspace(0, 2 * np.pi, 33)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 33 + 0.5, 0.45 - y / 31], axis=1)


_SHAPES = {
    "circle": arc((0.5, 0.5), (0.5, 0.5), 0, 360),
    "square": _line((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94), (0.06, 0.06)),
    "triangle": _line((0.5, 0.03), (1, 0.93), (0, 0.93), (0.5, 0.03)),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}
