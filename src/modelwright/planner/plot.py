"""A plan as one SVG picture: bars of what memory goes to, and memory against context; text and shapes, no library."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from modelwright.planner.memory import Memory
from modelwright.planner.plan import Plan
from modelwright.planner.units import format_bytes

WIDTH, HEIGHT = 860, 620
LEFT, RIGHT = 176, 770
COLOURS = {
    "weights": "#0072b2",
    "kv": "#e69f00",
    "workspace": "#56b4e9",
    "gradients": "#009e73",
    "optimizer": "#cc79a7",
    "activations": "#d55e00",
}
"""Parts of memory in colours that the colour-blind tell apart (Okabe and Ito)."""
NAMES = {"kv": "keys and values", "optimizer": "optimizer states"}
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 }
  .title { font-size: 17px; font-weight: 600 }
  .axis { font-size: 12px; fill: #666 }
  .grid { stroke: #8886; stroke-width: 1 }
  .limit { stroke: #c00; stroke-width: 1.5; stroke-dasharray: 6 4 }
  .mark { stroke: #333; stroke-width: 1.5; fill: #333 }
  .over { fill: #c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .axis { fill: #aaa } .mark { stroke: #ddd; fill: #ddd }
    .over { fill: #f77 } .limit { stroke: #f55 }
  }"""
LONGEST = 56
"""Characters of a model's name for which there is room."""
CHARACTER = 7.6
"""Pixels of the width of a character, about."""
_SAMPLES = 64


@dataclass(frozen=True)
class Scale:
    """Amounts from 0 to `most` on a line from pixel `start` to pixel `end`."""

    most: float
    start: float
    end: float

    def __call__(self, amount: float) -> float:
        return round(self.start + (self.end - self.start) * amount / self.most, 2)

    def ticks(self, base: int) -> list[int]:
        """At most six steps of 1, 2 or 5 times a power of 10 times the power of `base` that suits `most`."""
        unit = 1
        while unit * base <= self.most:
            unit *= base
        size = next(
            unit * part / 10
            for part in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
            if unit * part / 10 * 6 >= self.most
        )
        return [round(size * step) for step in range(int(self.most / size) + 1)]


def draw(plan: Plan, title: str) -> str:
    """The SVG document; `title` names the model."""
    bars = (("serving", plan.serving), ("training", plan.training), ("with recompute", plan.recomputing))
    shown = title if len(title) <= LONGEST else f"{title[: LONGEST - 3]}..."
    head = _text(24, 34, f"{shown}: memory of the fullest rank", "title")
    body = [head, *_legend(), *_bars(plan, bars), *_curve(plan)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img">\n<title>{escape(title)}: memory</title>\n<style>{STYLE}\n</style>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _legend() -> list[str]:
    pieces, x = [], 24.0
    for part, colour in COLOURS.items():
        name = NAMES.get(part, part)
        pieces.append(f'<rect x="{x}" y="52" width="12" height="12" fill="{colour}"/>')
        pieces.append(_text(x + 18, 63, name))
        x += 44 + 7.2 * len(name)
    return pieces


def _bars(plan: Plan, bars: Sequence[tuple[str, Memory]]) -> list[str]:
    """One stacked bar a row, its total behind it; a dashed line where the device ends."""
    limit = plan.devices.memory if plan.devices else 0
    scale = Scale(max(limit, *(memory.total for _, memory in bars)) * 1.02, LEFT, RIGHT)
    ticks = scale.ticks(1024)
    pieces = _grid_x(scale, 84, 236, [(tick, format_bytes(tick)) for tick in ticks])
    upright = sorted(scale(place) for place in (*ticks, *([limit] if limit else [])))
    if limit:
        pieces.append(_line(scale(limit), 84, scale(limit), 236, "limit"))
    for row, (name, memory) in enumerate(bars):
        y, done = 92 + 48 * row, 0
        pieces.append(_text(LEFT - 12, y + 22, name, anchor="end"))
        for part, size in ((part, size) for part, size in memory.items().items() if size):
            width = round(scale(done + size) - scale(done), 2)
            shape = f'<rect x="{scale(done)}" y="{y}" width="{width}" height="34" fill="{COLOURS[part]}">'
            pieces.append(f"{shape}<title>{NAMES.get(part, part)}: {format_bytes(size)}</title></rect>")
            done += size
        over = "over" if limit and done > limit else ""
        pieces.append(_text(_beside(scale(done) + 6, format_bytes(done), upright), y + 22, format_bytes(done), over))
    return pieces


def _beside(x: float, words: str, upright: Sequence[float]) -> float:
    """Where words that would begin at `x` begin so that none of the upright lines, from left to right, meets them."""
    for line in upright:
        if x - 4 < line < x + CHARACTER * len(words):
            x = line + 6
    return x


def _curve(plan: Plan) -> list[str]:
    """What was planned, at contexts from none to beyond the model's own and what fits, as stacked areas."""
    end = _last_context(plan)
    contexts = sorted({max(1, end * step // _SAMPLES) for step in range(_SAMPLES + 1)})
    memories = [plan.memory_at(context) for context in contexts]
    limit = plan.devices.memory if plan.devices else 0
    x = Scale(end, LEFT, RIGHT)
    y = Scale(max(min(limit, 3 * memories[-1].total), memories[-1].total) * 1.04, 560, 310)
    pieces = [_text(24, 292, "memory against context", "title")]
    pieces += _grid_y(y)
    below = [0] * len(contexts)
    for part, colour in COLOURS.items():
        above = [low + memory.items()[part] for low, memory in zip(below, memories, strict=True)]
        if above != below:
            edge = [f"{x(c)},{y(high)}" for c, high in zip(contexts, above, strict=True)]
            back = [f"{x(c)},{y(low)}" for c, low in zip(contexts, below, strict=True)]
            pieces.append(f'<polygon points="{" ".join(edge + back[::-1])}" fill="{colour}"/>')
        below = above
    pieces += _grid_x(x, 560, 560, [(tick, _tokens(tick)) for tick in x.ticks(1024)])
    pieces.append(_text((LEFT + RIGHT) / 2, 606, "context of each sequence, in tokens", "axis", "middle"))
    return pieces + _marks(plan, x, y, limit)


def _marks(plan: Plan, x: Scale, y: Scale, limit: int) -> list[str]:
    """The planned context as a line, the device's end as a dashed one, the largest context as a dot on it."""
    planned, total = x(plan.work.context), y(plan.memory.total)
    pieces = [
        _line(planned, 560, planned, total, "mark"),
        f'<circle cx="{planned}" cy="{total}" r="3.5" class="mark"/>',
    ]
    if limit and limit <= y.most:
        pieces.append(_line(LEFT, y(limit), RIGHT, y(limit), "limit"))
        pieces.append(_text(RIGHT + 8, y(limit) - 3, format_bytes(limit), "axis"))
        pieces.append(_text(RIGHT + 8, y(limit) + 11, "device", "axis"))
    largest = plan.largest_context
    if largest and largest <= x.most:  # what the dot means stands beside the title, where there is no curve
        pieces.append(f'<circle cx="{x(largest)}" cy="{y(limit)}" r="4.5" fill="#c00"/>')
        pieces.append(f'<circle cx="{RIGHT - 4}" cy="288" r="4.5" fill="#c00"/>')
        pieces.append(_text(RIGHT - 14, 292, f"{largest} tokens fit", anchor="end"))
    return pieces


def _last_context(plan: Plan) -> int:
    """Where the context axis ends: the model's own context and twice the planned one, and what fits if it is near."""
    if plan.counts.positions:
        return plan.counts.positions
    end, largest = max(plan.max_context, 2 * plan.work.context), plan.largest_context or 0
    return max(end, largest * 11 // 10) if largest <= 8 * end else end


def _tokens(amount: int) -> str:
    return f"{amount / 1024:g}K" if amount >= 1024 else str(amount)


def _grid_x(scale: Scale, top: float, bottom: float, ticks: list[tuple[int, str]]) -> list[str]:
    lines = [_line(scale(tick), top, scale(tick), bottom + 5, "grid") for tick, _ in ticks]
    return lines + [_text(scale(tick), bottom + 20, label, "axis", "middle") for tick, label in ticks]


def _grid_y(scale: Scale) -> list[str]:
    ticks = scale.ticks(1024)
    lines = [_line(LEFT - 5, scale(tick), RIGHT, scale(tick), "grid") for tick in ticks]
    return lines + [_text(LEFT - 12, scale(tick) + 4, format_bytes(tick), "axis", "end") for tick in ticks]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{style} text-anchor="{anchor}">{escape(words)}</text>'
