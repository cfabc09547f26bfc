"""Values of a row by their names, each of the type that it must have or a sentence about the row."""

from collections.abc import Iterable, Mapping
from typing import Any

from modelwright.data.examples import BrokenRow
from modelwright.data.rows import Row

# What may stand beside the words of a row, by kind: a format that has no place for it says so.
PICTURES = ("images", "image", "objects")
MEDIA = ("videos", "audios", "video", "audio")
CALLS = ("tools", "tool_calls", "functions", "function_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TURNS = ("system", "history")

# What a message says of itself: of ms-swift, OpenAI and Axolotl.
LEARNED = ("loss", "weight", "train")
PARTLY_LEARNED = ("loss_scale", "train_detail")
MESSAGE = ("role", "from", "content", "value", "images", *LEARNED)
"""What is read of a message."""
_SHOWN = 60


def broken(row: Row, reason: str) -> BrokenRow:
    """The error for a row."""
    return BrokenRow(row.place, reason)


def mapping_of(row: Row) -> Mapping[str, Any]:
    """The row as names and values."""
    if not isinstance(row.value, Mapping):
        raise broken(row, f"it must be names and values, and is {shown(row.value)}")
    return row.value


def words(row: Row, name: str, value: Any) -> str:
    """A string; ``name`` is what a sentence calls it."""
    if not isinstance(value, str):
        raise broken(row, f"{name} must be a string, got {shown(value)}")
    return value


def optional_words(row: Row, name: str) -> str:
    """The string of a name that may be missing, null or empty."""
    value = mapping_of(row).get(name)
    return "" if value is None else words(row, name, value)


def first_given(row: Row, names: Iterable[str]) -> str | None:
    """The first of some names under which the row has anything."""
    values = mapping_of(row)
    return next((name for name in names if is_given(values.get(name))), None)


def is_given(value: Any) -> bool:
    """Whether a value is more than the absence of one, as tables of rows with other names fill it in.

    They write lists as JSON too, such as those of tools.
    """
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    if isinstance(value, list | tuple | Mapping):
        return bool(value)
    return value is not None


def nothing_beside(row: Row, format: str, names: Iterable[str]) -> None:
    """Refuse a row that has anything under one of some names, which its format would leave out unseen."""
    name = first_given(row, names)
    if name is not None:
        raise broken(row, f"it has {name!r}, which rows of {format} have no place for: write all of it as messages")


def required(row: Row, name: str) -> Any:
    """What stands under a name."""
    values = mapping_of(row)
    if name not in values:
        raise broken(row, f"it has no {name!r}: its names are {listed(values)}")
    return values[name]


def items(row: Row, name: str, value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list | tuple):
        raise broken(row, f"{name} must be a list, got {shown(value)}")
    return list(value)


def several(row: Row, name: str, value: Any) -> list[Any]:
    """A list, one value as a list of it, and nothing as none."""
    if value is None:
        return []
    return items(row, name, value) if isinstance(value, list | tuple) else [value]


def listed(names: Any) -> str:
    """Names in a sentence."""
    known = [str(name) for name in names]
    rest = len(known) - 12
    return ", ".join(known[:12]) + (f" and {rest} more" if rest > 0 else "") if known else "none"


def shown(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    text = repr(value) if not isinstance(value, bytes) else f"{len(value)} bytes"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
