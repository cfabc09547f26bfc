"""The loaded kernels, or why there are none; and the one way to call them, which a recorder sees.

Without a compiler, or where the switch ``MODELWRIGHT_KERNELS`` is off, torch computes what the kernels would have:
:func:`reason` says why, and a warning of this module's logger says so once.
"""

import ctypes
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch.overrides import handle_torch_function, has_torch_function_unary

from modelwright.ops.backends.cpu.compiler import NoKernels, cache_folders, compiled, find_compiler
from modelwright.ops.backends.cpu.layouts import FUNCTIONS, Function, header
from modelwright.ops.backends.switch import switched_off

_log = logging.getLogger(__name__)


class Kernel:
    """A function of the loaded kernels, to be called with what ``layouts.py`` declares."""

    __slots__ = ("name", "run")

    def __init__(self, name: str, run: Callable[..., Any]):
        self.name, self.run = name, run

    def __call__(self, *arguments: int | float | bytes) -> Any:
        """Run it. Under a ``TorchFunctionMode`` it is the mode that does so, as with torch's own functions."""
        if has_torch_function_unary(self):  # the arguments are numbers, which ask for nothing
            return handle_torch_function(self, (), *arguments)
        return self.run(*arguments)


@dataclass(frozen=True)
class Build:
    """The functions of the loaded kernels by name, or why there are none."""

    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    reason: str = ""


@cache
def build() -> Build:
    """Load the kernels, compiling them if this machine has not yet; asked once per process.

    Raises:
        SwitchError: the switch is neither on nor off.
    """
    if off := switched_off():
        return Build(reason=off)
    try:
        return Build(bind(_library()))
    except NoKernels as error:
        _log.warning("torch computes instead of the compiled kernels, more slowly: %s", error)
        return Build(reason=str(error))


def bind(library: ctypes.CDLL, functions: Sequence[Function] = FUNCTIONS) -> dict[str, Kernel]:
    """The kernels of a loaded library.

    Raises:
        NoKernels: one of ``functions`` is missing.
    """
    try:
        return {one.name: Kernel(one.name, one.of(library)) for one in functions}
    except AttributeError as error:
        raise NoKernels(f"the compiled kernels lack a function: {error}") from error


def _library() -> ctypes.CDLL:
    if sys.platform == "win32":
        raise NoKernels("the kernels are not compiled on Windows")
    headers = {"layouts.h": header()}
    path = compiled(Path(__file__).parent, headers, find_compiler(), cache_folders())
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernels(f"the compiled kernels cannot be loaded: {error}") from error


def call(function: Function, *arguments: int | float | bytes) -> None:
    """Run a function of the kernels, which are there."""
    build().kernels[function.name](*arguments)


def ask(function: Function) -> int:
    """What a function says of the kernels themselves: the same each time, so that no recorder is to see it."""
    return build().kernels[function.name].run()


def available() -> bool:
    """Whether the compiled kernels run in this process."""
    return bool(build().kernels)


def reason() -> str:
    """Why they do not; empty if they do."""
    return build().reason
