"""JSON as its standard has it, without what Python's reader lets pass: NaN, a name twice, half a character."""

import json
import math
import re
from typing import Any

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN = 60


class NotJson(ValueError):
    """Why a text is not JSON, as the end of a sentence about it."""


def parse_json(text: bytes) -> Any:
    """The value that ``text`` (UTF-8) writes.

    Raises:
        NotJson: it is not UTF-8, not JSON, holds NaN or an infinite number, the same name twice in one object, half of
            a surrogate pair, or more levels or digits than are read.
    """
    try:
        value = _READER.decode(text.decode("utf-8"))
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"it is not UTF-8: byte {error.start + 1} is 0x{text[error.start]:02x}") from None
    except UnicodeEncodeError:
        raise NotJson("it holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"it is not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise NotJson("its lists and objects are nested too deep") from None
    except NotJson:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise NotJson(f"it holds a number that is not read: {error}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotJson(f"one object has the name {twice!r:.{_SHOWN}} twice")
    return made


def _refuse(constant: str) -> Any:
    raise NotJson(f"it holds {constant}, which JSON does not have")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotJson(f"it holds {digits:.{_SHOWN}}, which is more than a float64 holds")
    return number


_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
