"""What an encoder is, as a hash: two that make the same documents of the same rows have one, in any process."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

import numpy as np

_PLAIN = (str, int, float, bytes, bool, type(None))


def identity_of(encoder: Any) -> str:
    """The sha256, in hexadecimal, of an encoder's settings, tokenizer and template, and of this package's version.

    Of a tokenizer what it writes as ``tokenizer.json`` counts, its special tokens and its template; of any other object
    its attributes. Those that begin with an underscore are left out: they are made of the others.
    """
    digest = hashlib.sha256()
    with suppress(metadata.PackageNotFoundError):  # run from its sources alone
        digest.update(metadata.version("modelwright").encode())
    _feed(digest, encoder, set())
    return digest.hexdigest()


def _feed(digest: Any, value: Any, within: set[int]) -> None:
    if isinstance(value, _PLAIN):
        _write(digest, f"{type(value).__name__} {value!r}")
    elif isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        _write(digest, f"array {array.dtype.str} {array.shape}")
        digest.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(value, re.Pattern):
        _write(digest, f"pattern {value.pattern!r} {value.flags}")
    elif isinstance(value, Mapping):
        _feed_all(digest, "mapping", sorted(value.items(), key=repr), within)
    elif isinstance(value, set | frozenset):
        _feed_all(digest, "set", sorted(value, key=repr), within)
    elif isinstance(value, list | tuple):
        _feed_all(digest, "list", value, within)
    elif getattr(value, "backend_tokenizer", None) is not None:
        _write(digest, value.backend_tokenizer.to_str())
        _feed(digest, [str(value.special_tokens_map), value.chat_template, value.padding_side], within)
    elif id(value) not in within:
        kind = type(value)
        attributes = {name: each for name, each in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
        _write(digest, f"object {kind.__module__}.{kind.__qualname__} {getattr(value, '__qualname__', '')}")
        _feed(digest, attributes, within | {id(value)})


def _feed_all(digest: Any, kind: str, values: Iterable[Any], within: set[int]) -> None:
    values = list(values)
    _write(digest, f"{kind} of {len(values)}")
    for value in values:
        _feed(digest, value, within)


def _write(digest: Any, text: str) -> None:
    digest.update(text.encode("utf-8", "surrogatepass"))
    digest.update(b"\0")
