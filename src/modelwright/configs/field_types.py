"""What a value must be to fit the annotation of its field, and how it is kept; it knows no field and no family."""

import math
import numbers
import types
from collections.abc import Mapping
from reprlib import Repr
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from transformers.configuration_utils import PreTrainedConfig

from modelwright.errors import ConfigError

LARGEST_INT = 2**63 - 1
"""No tensor has a size, and no file of a model a number, that 64 bits do not hold."""
DTYPES = ("float32", "float16", "bfloat16", "float64")
"""The types that a config's `dtype` may name."""
DTYPE_ALIASES = {"half": "float16", "float": "float32", "double": "float64"}
"""torch's other names of some of them."""
_SHORT = Repr()
_SHORT.maxlevel = 4
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = 8


class ReadOnlyDict(dict[str, Any]):
    """A dict that is set as a whole: changing an entry raises, because what follows from it would not follow.

    It is a dict to JSON, to `copy` and to `pickle`, and `|` makes a plain dict of it.
    """

    def __init__(self, values: Mapping[str, Any], name: str):
        super().__init__(values)
        self._name = name

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        name = self._name
        raise ConfigError(
            f"the entries of {name} are read-only, as other fields say the same: set the whole of it, "
            f'config.{name} = config.{name} | {{"factor": 2.0}}'
        )

    __delitem__ = __ior__ = popitem = clear = _refuse

    def update(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse()

    def __setitem__(self, key: str, value: Any) -> None:
        """Nothing, where the entry has this value already: transformers writes back what it has read."""
        if key not in self or self[key] != value:
            self._refuse()

    def pop(self, key: str, *default: Any) -> Any:
        """The default, where there is no such entry: transformers asks for keys that it does not write."""
        return default[0] if default and key not in self else self._refuse()

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The entry, which must be there: transformers asks like this for what it has put there before."""
        return self[key] if key in self else self._refuse()

    def __reduce__(self) -> tuple[type["ReadOnlyDict"], tuple[dict[str, Any], str]]:
        return type(self), (dict(self), self._name)


def plain(value: Any, expected: Any) -> Any:
    """`value` as the field keeps it: numpy's numbers as Python's, lists as tuples, an int in a float field as a float.

    An int that no float can hold stays one, and `fits` refuses it.
    """
    if get_origin(expected) is tuple and isinstance(value, list | tuple):
        return tuple(plain(item, get_args(expected)[0]) for item in value)
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return _as_float(int(value)) if _takes_floats_alone(expected) else int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if get_origin(expected) is list and isinstance(value, list):
        return [plain(item, get_args(expected)[0]) for item in value]
    return value


def as_filed(value: Any, expected: Any) -> Any:
    """`value` of a file as its field means it: a whole float such as 8.0 is an int where no float is meant."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and _takes(int, expected) and not _takes(float, expected) else value


def means_none(value: Any, expected: Any) -> bool:
    """Whether `value` is the text that YAML makes of a bare `None`, for a field that takes no text."""
    return value == "None" and not _takes(str, expected) and expected is not Any


def _takes(kind: type, expected: Any) -> bool:
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    return kind in options


def _as_float(value: int) -> int | float:
    try:
        return float(value)
    except OverflowError:
        return value


def _takes_floats_alone(expected: Any) -> bool:
    return _takes(float, expected) and not _takes(int, expected)


def fits(value: Any, expected: Any) -> bool:
    """Whether `value` has the annotated type; a bool is no int, a float is finite, an int has at most 64 bits."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple and arguments[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin in (list, tuple):
        return isinstance(value, origin) and all(fits(item, arguments[0]) for item in value)
    if expected is float:
        return is_number(value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
    return isinstance(value, types.NoneType if expected is None else origin or expected)


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float that a float can hold, and neither a bool nor infinite."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(value)
    return isinstance(value, float) and math.isfinite(value)


def describe(expected: Any) -> str:
    """The annotation in words, for errors."""
    if get_origin(expected) in (Union, types.UnionType):
        return " or ".join(describe(option) for option in get_args(expected))
    if get_origin(expected) is Literal:
        return " or ".join(map(repr, get_args(expected)))
    if expected is types.NoneType:
        return "None"
    if expected is float:
        return "a finite number"
    return str(expected) if get_origin(expected) else expected.__name__


def shown(value: Any) -> str:
    """`value` and its type, for errors, as `cut`; of a huge int only that it is huge."""
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        return cut(value)
    return f"{cut(value)} ({type(value).__name__})"


def cut(value: Any) -> str:
    """The `repr` of a value, for errors: its beginning where it is long or nested deep, of a huge int its size."""
    if isinstance(value, int) and abs(value) > LARGEST_INT:  # Python itself writes none of more than 4,300 digits
        return f"an int of {value.bit_length()} bits"
    return _SHORT.repr(value)


def dtype_name(value: Any) -> Any:
    """`value` as a plain lower-case type name: `torch.float16`, `"mstype.Float16"` and `"half"` are `"float16"`."""
    name = str(value).lower().rsplit(".", 1)[-1]
    name = DTYPE_ALIASES.get(name, name)
    return name if name in DTYPES else value


def torch_dtype(value: Any) -> Any:
    """The `torch.dtype` that transformers makes of a name; a `torch.dtype` and `None` stay what they are.

    Raises:
        ConfigError: it names no type of `DTYPES`.
    """
    if value is None:
        return None
    name = dtype_name(value)
    if name not in DTYPES:
        allowed = ", ".join(f'"{each}"' for each in DTYPES)
        raise ConfigError(f"dtype must be one of {allowed}; got {value!r}")
    return PreTrainedConfig(dtype=name).dtype
