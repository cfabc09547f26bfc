"""The line of a step, for people: ``step 200/1000  loss 2.1034 (lm 2.0990 + balance 0.0044)  lr 1.98e-05  ...``."""

import math
from collections.abc import Mapping
from typing import Any

_GIB = 2**30


def step_line(row: Mapping[str, Any], steps: int, left: float | None) -> str:
    """One line of a row of ``metrics.jsonl``; what a row lacks is left out.

    Args:
        steps: of the whole run.
        left: seconds that the rest will take.
    """
    parts = [f"step {row['step']}/{steps}", _loss(row)]
    if rates := row.get("rates"):
        parts.append(f"lr {_rates(rates)}")
    if (norm := row.get("norm")) is not None:
        parts.append(f"norm {number(norm)}")
    if (speed := row.get("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if (mfu := row.get("mfu")) is not None:
        parts.append(f"mfu {mfu:.0%}")
    if memory := _memory(row.get("memory") or {}):
        parts.append(memory)
    if left is not None:
        parts.append(f"eta {clock(left)}")
    return "  ".join(parts)


def _loss(row: Mapping[str, Any]) -> str:
    whole = f"loss {_fixed(row.get('loss'))}"
    if row.get("balance") is None:
        return whole
    return f"{whole} (lm {_fixed(row.get('lm'))} + balance {_fixed(row['balance'])})"


def _fixed(value: float | None) -> str:
    """A loss with four digits after the point, as many as change from step to step; small ones in powers of ten."""
    if value is None or not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2e}"


def number(value: float) -> str:
    """To three digits, in powers of ten where it is very large or small."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.2f}"
    return f"{value:.2e}"


def _rates(rates: Mapping[str, float]) -> str:
    """The rate; the smallest and the largest where groups differ."""
    lowest, highest = min(rates.values()), max(rates.values())
    return f"{highest:.2e}" if lowest == highest else f"{lowest:.2e} to {highest:.2e}"


def _memory(memory: Mapping[str, Any]) -> str:
    peak, total = memory.get("peak"), memory.get("total")
    if peak is None:
        return ""
    return f"{peak / _GIB:.1f} GiB" if total is None else f"{peak / _GIB:.1f}/{total / _GIB:.0f} GiB"


def clock(seconds: float) -> str:
    """``12:41``, ``3:12:41`` or ``2d 03:12``."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
