"""Whether a pass that is recorded or captured gives, when it is replayed, what it gives when it is run."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modelwright.engine.graphs import Capture, CudaCapture, TapeCapture
from modelwright.errors import ConfigError
from modelwright.ops.gated import gated_product
from modelwright.ops.linear import linear, linears
from modelwright.ops.norm import rms_norm
from modelwright.ops.page_writes import write_pages
from modelwright.ops.paged import decode_attention
from modelwright.ops.pages import Pages

_ROUNDS = 3
_HEADS, _DIM, _PAGE = 2, 32, 16
_WIDTH = _HEADS * _DIM


@dataclass(frozen=True)
class Replayed:
    """The largest difference of replays, which are to be the same to the last bit; or why there is no replay."""

    backend: str
    worst: float
    refusal: str = ""

    @property
    def right(self) -> bool:
        """Whether there is a replay, and it gives the same."""
        return not self.refusal and self.worst == 0.0


@torch.inference_mode()
def replayed(device: torch.device) -> Replayed:
    """A small layer's decode, captured as an engine would on that device, and replayed on other numbers."""
    backend = "cudagraph" if device.type == "cuda" else "record"
    capture: Capture = CudaCapture(device) if device.type == "cuda" else TapeCapture()
    try:
        return Replayed(backend, _worst(capture, _Layer(device)))
    except ConfigError as error:
        return Replayed(backend, torch.inf, str(error))


def _worst(capture: Capture, layer: "_Layer") -> float:
    replay = capture(layer)
    worst = 0.0
    for number in range(_ROUNDS):
        layer.fill(number)
        found = replay().clone()
        difference = (found.float() - layer().float()).abs().max()
        worst = max(worst, difference.nan_to_num(nan=torch.inf).item())
    return worst


class _Layer:
    """A decode of two sequences by a layer in bf16: norms, attention over pages and a gated feed-forward."""

    def __init__(self, device: torch.device):
        self._random, self._device = torch.Generator().manual_seed(0), device
        self._x, self._norm = self._numbers(2, _WIDTH), self._numbers(_WIDTH)
        self._projections = [(self._numbers(_WIDTH, _WIDTH, scale=0.1), None) for _ in range(3)]
        self._gated = [(self._numbers(2 * _WIDTH, _WIDTH, scale=0.1), None) for _ in range(2)]
        self._down = self._numbers(_WIDTH, 2 * _WIDTH, scale=0.1)
        self._keys, self._values = (Pages(self._numbers(6, _PAGE, _HEADS, _DIM)) for _ in range(2))
        self._tables = torch.tensor([[4, 0, 3], [1, 5, 2]], dtype=torch.int32, device=device)
        self._contexts = torch.ones(2, dtype=torch.int32, device=device)
        self._slots = torch.zeros(2, dtype=torch.int64, device=device)
        self.fill(_ROUNDS)

    def fill(self, number: int) -> None:
        """Other rows, at other places of their sequences."""
        places = torch.tensor([20 + number, 2 + 9 * number], device=self._device)
        self._x.copy_(self._numbers(2, _WIDTH))
        self._contexts.copy_(places + 1)
        pages = self._tables.gather(1, (places // _PAGE)[:, None])[:, 0]
        self._slots.copy_(pages * _PAGE + places % _PAGE)

    def __call__(self) -> Tensor:
        """The rows after the layer ``[2, width]``."""
        normed = rms_norm(self._x, self._norm, 1e-5)
        q, k, v = (part.unflatten(-1, (_HEADS, _DIM)) for part in linears(normed, self._projections))
        write_pages(self._keys, self._slots, k)
        write_pages(self._values, self._slots, v)
        attended = decode_attention(q, self._keys, self._values, self._contexts, self._tables, _DIM**-0.5)
        x = self._x + attended.flatten(1)
        gate, up = linears(rms_norm(x, self._norm, 1e-5), self._gated)
        return x + linear(gated_product(gate, up, F.silu), self._down)

    def _numbers(self, *shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._random) * scale).to(self._device, torch.bfloat16)
