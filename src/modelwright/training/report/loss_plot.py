"""``loss.svg``: the loss of a run as one picture, held-out sets beside it; text and shapes, no library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median
from typing import Any

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 836, 78, 368
LOSS, COLOURS = "#0072b2", ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that the colour-blind tell apart (Okabe and Ito): of the training loss, and of held-out sets in order."""
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 }
  .title { font-size: 17px; font-weight: 600 }
  .axis { font-size: 12px; fill: #666 }
  .grid { stroke: #8885; stroke-width: 1 }
  .curve { fill: none; stroke-width: 2; stroke-linejoin: round }
  .each { fill: none; stroke-width: 1; opacity: 0.3 }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .axis { fill: #aaa } }"""
LONGEST = 64
"""Characters of a title for which there is room."""
_MOST = 400
"""Points of a curve; where there are more, neighbours are averaged."""

Point = tuple[float, float]


@dataclass
class Curves:
    """The points of a run, step to loss: of training, and of each held-out set; of two of a step the later counts."""

    training: dict[int, float] = field(default_factory=dict)
    held_out: dict[str, dict[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Curves":
        """Of the rows of ``metrics.jsonl``."""
        curves = cls()
        for row in rows:
            curves.add(row)
        return curves

    def add(self, row: Mapping[str, Any]) -> None:
        """One row; numbers that are none are no points."""
        if _is_number(row.get("loss")):
            self.training[int(row["step"])] = float(row["loss"])
        for name, found in (row.get("held_out") or {}).items():
            if _is_number(found.get("loss")):
                self.held_out.setdefault(name, {})[int(row["step"])] = float(found["loss"])


def draw(curves: Curves, title: str, steps: int) -> str:
    """The SVG document; the axis of steps ends at ``steps``, or where the last point is."""
    training = sorted(curves.training.items())
    sets = {name: sorted(points.items()) for name, points in curves.held_out.items()}
    last = max([steps, *(points[-1][0] for points in (training, *sets.values()) if points)], default=1)
    means = _smooth(_thinned(training))
    x = Axis(0, max(last, 1), LEFT, RIGHT)
    y = _loss_axis([value for _, value in means], [value for points in sets.values() for _, value in points])
    shown = title if len(title) <= LONGEST else f"{title[: LONGEST - 3]}..."
    body = [_text(24, 34, f"{shown}: loss", "title"), *_legend(training, sets), *_grid(x, y)]
    if training:
        body.append(_line(_thinned(training), x, y, LOSS, "each"))
        body.append(_line(means, x, y, LOSS, "curve"))
        body.append(_dot(*means[-1], x, y, LOSS, f"step {training[-1][0]}: {training[-1][1]:.4f}"))
    for (name, points), colour in zip(sets.items(), _colours(), strict=False):
        body.append(_line(points, x, y, colour, "curve"))
        body += [_dot(step, loss, x, y, colour, f"{name}, step {step}: {loss:.4f}") for step, loss in points]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img">\n<title>{escape(title)}: loss</title>\n<style>{STYLE}\n</style>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


@dataclass(frozen=True)
class Axis:
    """Amounts from `low` to `high` on a line from pixel `start` to pixel `end`; what lies outside stands at its end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, amount: float) -> float:
        share = (amount - self.low) / ((self.high - self.low) or 1)
        return round(self.start + (self.end - self.start) * min(max(share, 0), 1), 2)

    def ticks(self, most: int) -> list[float]:
        """Round amounts, at most so many and one, each 1, 2 or 5 times a power of ten from the next."""
        size = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(size)) if size > 0 else 1.0
        step = next(power * part for part in (1, 2, 5, 10) if power * part >= size * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * number for number in range(first, last + 1)]


def _loss_axis(means: Sequence[float], held_out: Sequence[float]) -> Axis:
    """From below the lowest loss to above the highest of those that last: a spike leaves the picture."""
    values = sorted([*means, *held_out])
    if not values:
        return Axis(0, 1, BOTTOM, TOP)
    high = values[min(len(values) - 1, math.ceil(len(values) * 0.995))]
    margin = 0.06 * (high - values[0]) or 0.06 * abs(high) or 1
    low = values[0] - margin
    return Axis(0 if 0 < values[0] < 0.15 * high else low, high + margin, BOTTOM, TOP)


def _smooth(points: Sequence[Point]) -> list[Point]:
    """The median of each loss and its neighbours, a thirtieth of the curve to both sides, less at its ends."""
    most = len(points) // 30
    smooth = []
    for place, (step, _) in enumerate(points):
        reach = min(most, place, len(points) - 1 - place)
        smooth.append((step, median(loss for _, loss in points[place - reach : place + reach + 1])))
    return smooth


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST` points, neighbours averaged; the last stays as it is."""
    if len(points) <= _MOST:
        return list(points)
    size = math.ceil((len(points) - 1) / (_MOST - 1))
    groups = [points[start : min(start + size, len(points) - 1)] for start in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means, points[-1]]


def _legend(training: Sequence[Point], sets: Mapping[str, Sequence[Point]]) -> list[str]:
    shown = [("training", LOSS, training)]
    shown += [(name, colour, points) for (name, points), colour in zip(sets.items(), _colours(), strict=False)]
    pieces, x = [], 24.0
    for name, colour, points in shown:
        words = f"{name if len(name) <= 24 else name[:21] + '...'} {points[-1][1]:.4f}" if points else name
        if x + 44 + 7.2 * len(words) > WIDTH:
            break
        pieces.append(f'<rect x="{x:g}" y="50" width="12" height="12" fill="{colour}"/>')
        pieces.append(_text(x + 18, 61, words))
        x += 44 + 7.2 * len(words)
    return pieces


def _colours() -> Iterable[str]:
    return (colour for _ in range(100) for colour in COLOURS)


def _grid(x: Axis, y: Axis) -> list[str]:
    across, up = y.ticks(6), x.ticks(8)
    lines = [_straight(LEFT - 5, y(tick), RIGHT, y(tick)) for tick in across]
    lines += [_straight(x(tick), BOTTOM, x(tick), BOTTOM + 5) for tick in up if tick == int(tick)]
    words = [_text(LEFT - 12, y(tick) + 4, _amount(tick), "axis", "end") for tick in across]
    words += [_text(x(tick), BOTTOM + 20, f"{int(tick):,}", "axis", "middle") for tick in up if tick == int(tick)]
    return [*lines, *words, _text((LEFT + RIGHT) / 2, HEIGHT - 10, "optimizer steps", "axis", "middle")]


def _line(points: Sequence[Point], x: Axis, y: Axis, colour: str, kind: str) -> str:
    places = " ".join(f"{x(step)},{y(loss)}" for step, loss in points)
    return f'<polyline points="{places}" stroke="{colour}" class="{kind}"/>'


def _dot(step: float, loss: float, x: Axis, y: Axis, colour: str, words: str) -> str:
    return f'<circle cx="{x(step)}" cy="{y(loss)}" r="3.5" fill="{colour}"><title>{escape(words)}</title></circle>'


def _amount(value: float) -> str:
    return f"{round(value, 10):g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _straight(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="grid"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{style} text-anchor="{anchor}">{escape(words)}</text>'
