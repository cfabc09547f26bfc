"""Which backend computes each operation on a device, and whether that gives what the reference gives.

Both run the operations themselves, on small random tensors, and watch which kernels they call: what is said here is
what the dispatch does. Leaves out passes that are recorded or captured (``engine/check.py``).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends import triton as gpu_kernels
from modelwright.ops.backends.cpu.build import Kernel
from modelwright.ops.draws import Draw, Example
from modelwright.ops.examples import EXAMPLES

ALLOWED = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""How far results may be from the reference, as a share of its largest number: some of the last bits of the type."""
TYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
"""The types that kernels of a kind of device know."""
DRAWS = 12
"""Random shapes of each operation and type."""
_TRITON = gpu_kernels.__name__


@dataclass(frozen=True)
class Computed:
    """Who computes an operation: ``cpu``, ``triton`` or ``torch``, and why each of the others does not."""

    op: str
    device: str
    dtype: str
    backend: str
    others: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """The worst error of a kernel over all draws, as a share of the reference's largest number."""

    op: str
    backend: str
    device: str
    dtype: str
    worst: float
    allowed: float

    @property
    def right(self) -> bool:
        """Whether the error is allowed; one that is no number is not."""
        return self.worst <= self.allowed


def computed(device: torch.device) -> Iterator[Computed]:
    """Each operation with sizes of a decode, in bf16, by the backend that the dispatch picks for it."""
    for op, example in EXAMPLES.items():
        backend, _ = _run(example, Draw.typical(torch.bfloat16, device))
        others = {other: _reason(other, backend, device) for other in ("cpu", "triton", "torch") if other != backend}
        yield Computed(op, str(device), "bfloat16", backend, others)


def compared(device: torch.device) -> Iterator[Compared]:
    """Every kernel that the dispatch picks on a device, by operation and type, held to its reference."""
    for op, example in EXAMPLES.items():
        for dtype in TYPES.get(device.type, ()):
            worst: dict[str, float] = {}
            for seed in range(DRAWS):
                backend, error = _run(example, Draw.random(seed, dtype, device))
                worst[backend] = max(worst.get(backend, 0.0), error)
            name = str(dtype).removeprefix("torch.")
            for backend in sorted(set(worst) - {"torch"}):
                yield Compared(op, backend, str(device), name, worst[backend], ALLOWED[dtype])


def refused(device: torch.device) -> tuple[str, ...]:
    """Why kernels that there are for a device do not serve on it: they were wrong when they were first asked for."""
    if device.type != "cuda" or gpu_kernels.reason():
        return ()
    found = (failure(device, dtype) for failure in gpu_kernels.FAILURES for dtype in TYPES["cuda"])
    return tuple(filter(None, found))


@torch.inference_mode()
def _run(example: Example, draw: Draw) -> tuple[str, float]:
    """The backend that computes an example, and how far it is from the reference."""
    ours, exact = example(draw)
    with _Watch() as watch:
        found = ours()
    wanted = exact().double()
    error = (found.cpu().double() - wanted).abs().max() / wanted.abs().max()
    return watch.backend, error.nan_to_num(nan=torch.inf).item()


class _Watch(TorchFunctionMode):
    """Notes whose kernels are called."""

    backend = "torch"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, Kernel):
            self.backend = "cpu"
        elif isinstance(func, FunctionType) and func.__module__.startswith(_TRITON):
            self.backend = "triton"
        return func(*args, **(kwargs or {}))


def _reason(backend: str, chosen: str, device: torch.device) -> str:
    """Why a backend does not compute what another was chosen for."""
    if backend == "torch":
        return f"the {chosen} kernel is faster"
    if (device.type == "cpu") != (backend == "cpu"):
        return f"its kernels are for {'the CPU' if backend == 'cpu' else 'GPUs'}"
    if backend == "cpu":
        return kernels.reason() or "it has no kernel for this, or a slower one"
    return gpu_kernels.reason() or "; ".join(refused(device)) or "it has no kernel for this"
