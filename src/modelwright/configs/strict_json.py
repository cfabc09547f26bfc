"""JSON as its standard has it, without what Python's reader lets pass: NaN, a name twice, half a character."""

import json
import math
import re
from typing import Any

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 60


class NotJson(ValueError):
    """Why a text is not JSON: a sentence whose subject is the text."""


def parse_json(text: bytes, what: str = "it") -> Any:
    """The value that ``text`` (UTF-8) writes.

    Args:
        what: the text, as its reader is told of it.

    Raises:
        NotJson: it is not UTF-8, not JSON, holds NaN or an infinite number, the same name twice in one object, half of
            a surrogate pair, or more levels or digits than are read.
    """
    try:
        value = _READER.decode(text.decode("utf-8"))
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Holds as found:
        raise NotJson(f"{what} holds {found}") from None
    except UnicodeDecodeError as error:
        raise NotJson(f"{what} is not UTF-8: byte {error.start + 1} is 0x{text[error.start]:02x}") from None
    except UnicodeEncodeError:
        raise NotJson(f"{what} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"{what} is not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise NotJson(f"{what} is nested too deep") from None
    except ValueError:
        raise NotJson(f"{what} holds a number of too many digits") from None
    return value


class _Holds(Exception):
    """What a text holds that JSON does not have."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Holds(f"an object with the name {twice!r:.{_SHOWN}} twice")
    return made


def _refuse(constant: str) -> Any:
    raise _Holds(f"{constant}, which JSON does not have")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _Holds(f"{digits:.{_SHOWN}}, which is more than a float64 holds")
    return number


_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
