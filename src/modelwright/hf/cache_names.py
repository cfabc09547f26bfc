"""What transformers calls the keys and values of earlier tokens: ``past_key_values`` before 5.24, ``cache`` since.

A caller may use either name and an output is read by either, on every release. Our own code says ``cache``.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from transformers.modeling_outputs import BaseModelOutputWithPast

P = ParamSpec("P")
R = TypeVar("R")
OLD_NAME, NEW_NAME = "past_key_values", "cache"

CACHE_NAME = NEW_NAME if NEW_NAME in {field.name for field in fields(BaseModelOutputWithPast)} else OLD_NAME
"""The name that the installed transformers calls models with and reads from their outputs."""


def either_cache_name(method: Callable[P, R]) -> Callable[P, R]:
    """Let callers of ``method``, which has a parameter ``cache``, say ``past_key_values`` instead.

    Raises:
        TypeError: at a call that says both.
    """

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **with_cache_as(NEW_NAME, kwargs))

    # generate() looks in the signature for the name that it passes the cache under.
    signature = inspect.signature(method)
    parameters = [p.replace(name=CACHE_NAME) if p.name == NEW_NAME else p for p in signature.parameters.values()]
    setattr(called, "__signature__", signature.replace(parameters=parameters))  # noqa: B010  # no declared attribute
    return called


def with_cache_as(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments whose cache, under whichever name it was given, goes by ``name``.

    Raises:
        TypeError: both names are given.
    """
    other = OLD_NAME if name == NEW_NAME else NEW_NAME
    if other not in arguments:
        return arguments
    if arguments.get(name) is not None:
        raise TypeError(f"{NEW_NAME} and {OLD_NAME} are two names of one argument: give one of them")
    return {key: value for key, value in arguments.items() if key != other} | {name: arguments[other]}


class EitherCacheKey:
    """A dictionary whose cache is read and written by either name; stands before the class that holds the items."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_as_stored(key))  # pyright: ignore[reportAttributeAccessIssue]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_as_stored(key), value)  # pyright: ignore[reportAttributeAccessIssue]

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(_as_stored(key))  # pyright: ignore[reportAttributeAccessIssue]

    def get(self, key: Any, default: Any = None) -> Any:
        """As a dictionary's."""
        return super().get(_as_stored(key), default)  # pyright: ignore[reportAttributeAccessIssue]


class PreparedInputs(EitherCacheKey, dict[str, Any]):
    """What ``prepare_inputs_for_generation`` returns: peft, which wraps it, knows the cache by its older name."""


class EitherCacheName(EitherCacheKey):
    """An output whose cache is read by either name, as an attribute too; stands before transformers' class."""


def _other_name(self: Any) -> Any:
    return getattr(self, CACHE_NAME)


setattr(EitherCacheName, OLD_NAME if CACHE_NAME == NEW_NAME else NEW_NAME, property(_other_name))


def _as_stored(key: Any) -> Any:
    return CACHE_NAME if isinstance(key, str) and key in (OLD_NAME, NEW_NAME) else key


def of_cache(cache: Any) -> dict[str, Any]:
    """``cache`` as the keyword argument that the installed transformers takes."""
    return {CACHE_NAME: cache}
