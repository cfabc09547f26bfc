"""Judges answers: is it JSON, is it of the schema, and is each field true of the text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.smollm2_json.rows import answer_of

FIELDS = ("names", "count", "error", "negated")


@dataclass(frozen=True)
class Verdict:
    """What an answer is.

    Attributes:
        parses: the whole answer is JSON.
        fits: it is, and of the schema: these four fields and no other, each of its type.
        found: an object stands somewhere in it, such as between words or in a fence.
        exact: which fields of that object are true of the text.
    """

    parses: bool
    fits: bool
    found: bool
    exact: Mapping[str, bool]


def judge(text: str, answer: str) -> Verdict:
    """The verdict on an answer about an excerpt."""
    whole, (within, found) = _read(answer.strip()), _object_in(answer)
    wanted = answer_of(text)
    exact = {name: found and _same(within.get(name, ...), wanted[name]) for name in FIELDS}
    return Verdict(whole is not ..., fits_schema(whole), found, exact)


def fits_schema(value: Any) -> bool:
    """Whether a value has the four fields and no other, each of its type."""
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        return False
    names, count, error, negated = (value[name] for name in FIELDS)
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and type(count) is int
        and (error is None or isinstance(error, str))
        and isinstance(negated, bool)
    )


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The share of answers that parse, that fit, that hold an object, of each exact field, and of all four together."""
    rows = [
        {"parses": each.parses, "fits the schema": each.fits, "holds an object": each.found}
        | {f"{name} exact": each.exact[name] for name in FIELDS}
        | {"all exact": all(each.exact.values())}
        for each in verdicts
    ]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _same(found: Any, wanted: Any) -> bool:
    return type(found) is type(wanted) and found == wanted


def _read(text: str) -> Any:
    """What a text says in JSON; an ellipsis, which JSON has not, where it says nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ...


def _object_in(text: str) -> tuple[dict[str, Any], bool]:
    """The first object in a text, and whether there is one."""
    decoder = json.JSONDecoder()
    for place, character in enumerate(text):
        if character == "{":
            try:
                return decoder.raw_decode(text, place)[0], True
            except (ValueError, RecursionError):
                continue
    return {}, False
