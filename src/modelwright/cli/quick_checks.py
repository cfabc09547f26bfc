"""What can be told of a model's name, a number type and a device before libraries are imported, which takes long."""

import difflib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from modelwright import zoo
from modelwright.errors import CheckpointError, ConfigError, RequestError

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "npu", "hpu", "mtia", "xla")
"""What torch computes on, as it calls it; whether it is here is found out by torch."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_NAME = re.compile(r"(?=.*[^\W\d_])\w+([.\-_]\w+)*")
_MARKED = re.compile(r"\w[.\-_]\w|[^\W\d_]\d|\d[^\W\d_]")
_PATH = re.compile(r"(\.{1,2}|~\w*)?/\S*|~|[\w.-]{2,}(/[\w.-]{2,})+/?")
_ALIKE = 0.7


def looks_like_a_model(text: str) -> bool:
    """Whether a lone word is meant as a model, there or not: a name such as ``llama-7b``, a path or a hub id."""
    if text in zoo.names() or HUB_ID.fullmatch(text) or _PATH.fullmatch(text) or _exists(text):
        return True
    return _NAME.fullmatch(text) is not None and (_MARKED.search(text) is not None or bool(_nearest(text)))


def check_model(name: str) -> None:
    """Raise a CheckpointError where `name` can be no model: none of the zoo, nothing here, and no hub id."""
    if name in zoo.names() or _exists(name):
        return
    if HUB_ID.fullmatch(name) and not name.startswith("~"):
        if _exists(name.partition("/")[0]):
            near = _did_you_mean(_nearest_beside(name))
            raise CheckpointError(
                f"{name} is not a folder and not a file here, where {name.partition('/')[0]} is{near}"
            )
        return
    if _PATH.fullmatch(name):
        raise CheckpointError(f"{name} is not a folder and not a hub id{_did_you_mean(_nearest_beside(name))}")
    raise CheckpointError(
        f"{name!r:.80} is no name from `modelwright models` ({', '.join(zoo.names()) or 'which lists none'}), no "
        f"folder or file here, and no hub id like org/name{_did_you_mean(_nearest(name))}"
    )


def is_on_hub(name: str) -> bool:
    """Whether a model that passed `check_model` is none of the zoo and not here, so that a hub is asked for it."""
    return name not in zoo.names() and not _exists(name) and HUB_ID.fullmatch(name) is not None


def check_place_to_make(path: Path) -> None:
    """Raise a RequestError where `path` is ``-``, which elsewhere is stdin or stdout and can hold no folder."""
    if str(path) == "-":
        raise RequestError("OUT is -, which stands for a stream, and what is made is none: name a place for it")


def check_choice(field: str, value: str | None, choices: Iterable[str]) -> None:
    """Raise a ConfigError where `value` is given and none of the `choices`."""
    choices = tuple(choices)
    if value is not None and value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, n=1)
        raise ConfigError(
            f"{field} must be one of {', '.join(choices)}; got {value!r:.80}{_did_you_mean(near)}", field=field
        )


def check_packages(names: Iterable[str], extra: str) -> None:
    """Raise a RequestError where a package that comes with an extra alone is not installed; none is imported."""
    lacking = next((name for name in names if find_spec(name) is None), None)
    if lacking is not None:
        raise RequestError(f'{lacking} is not installed, which this needs: pip install "modelwright[{extra}]"')


def check_device(device: str) -> None:
    """Raise a ConfigError where `device` is nothing that torch computes on, with or without a number."""
    kind, _, number = device.partition(":")
    if ":" in device and not re.fullmatch(r"\d{1,4}", number):
        raise ConfigError(
            f"device must have a number behind its colon, like cuda:1; got {device!r:.80}", field="device"
        )
    check_choice("device", kind, DEVICES)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a null character, or of no such user
        return False


def _nearest(name: str) -> list[str]:
    """The name of the zoo that `name` resembles, as a list of one or none."""
    return difflib.get_close_matches(name.lower(), zoo.names(), n=1, cutoff=_ALIKE)


def _nearest_beside(name: str) -> list[str]:
    """What lies where `name` is said to lie and is called alike."""
    path = Path(name)
    try:
        there = [each.name for each in path.expanduser().parent.iterdir()]
    except (OSError, ValueError, RuntimeError):
        return []
    return [str(path.parent / near) for near in difflib.get_close_matches(path.name, there, n=1, cutoff=_ALIKE)]


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""
