"""Whether this process has Triton, and its programs, imported when a tensor on a GPU first asks for them.

Triton is not among the package's requirements: torch for CUDA or ROCm on Linux brings it along. Where it is missing,
has no C compiler to build its launchers with, or ``MODELWRIGHT_KERNELS=0``, torch computes what the kernels would have.
"""

import os
import shutil
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from modelwright.ops.backends.switch import switched_off

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


def serves(*tensors: Tensor) -> bool:
    """Whether kernels take these tensors: on a GPU, and nothing but numbers asked for, no gradient and no graph."""
    if any(tensor.device.type not in DEVICES for tensor in tensors) or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return not torch.is_autocast_enabled(tensors[0].device.type) and available()
