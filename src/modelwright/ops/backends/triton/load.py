"""Whether this process has Triton, and its programs, imported when a tensor on a GPU first asks for them.

Triton is not among the package's requirements: torch for CUDA or ROCm on Linux brings it along. Where it is missing,
has no C compiler to build its launchers with, or ``MODELWRIGHT_KERNELS=0``, torch computes what the kernels would have.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ParamSpec

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from modelwright.ops.backends.switch import switched_off

P = ParamSpec("P")
INTERPRET = "TRITON_INTERPRET"
DEVICES = ["cuda"]
"""The types of devices whose tensors are served, ROCm's being called ``cuda`` too."""


@cache
def reason() -> str:
    """Why there are no kernels in this process; empty if there are. Imports nothing."""
    if off := switched_off():
        return off
    if find_spec("triton") is None:
        return "triton is not installed"
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang"))
    if not interpreted() and not any(map(shutil.which, compilers)):
        return "Triton needs a C compiler (CC, gcc or clang) on the PATH"
    return ""


def available() -> bool:
    """Whether the kernels run in this process."""
    return not reason()


def interpreted() -> bool:
    """Whether Triton's interpreter runs them, on tensors of the CPU; to be decided before Triton is imported."""
    return os.environ.get(INTERPRET, "0") == "1"


@cache
def programs(name: str) -> Any:
    """The module ``name`` of this package, which imports Triton."""
    return import_module(f"modelwright.ops.backends.triton.{name}")


def runs_on(*tensors: Tensor) -> bool:
    """Whether these tensors lie where the programs run: on a GPU."""
    return all(tensor.device.type in DEVICES for tensor in tensors) and available()


def watchable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``function``, whose first argument is a tensor, seen by modes that watch torch's functions."""

    @wraps(function)
    def watched(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if has_torch_function_unary(args[0]):
            return handle_torch_function(function, args[:1], *args, **kwargs)
        return function(*args, **kwargs)

    return watched
