"""How a family's layers compute, as far as it decides what training keeps: norms, activation, dropout, softmax.

Bytes are those that autograd keeps on a CPU, as `torch.autograd.graph.saved_tensors_hooks` sees them. Kernels of a GPU
keep less in two places: a dropout's mask takes a byte there, and a fused norm does not keep its quotient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FLOAT32 = 4
INT64 = 8

Norm = Literal["rms", "fused_rms", "layer"]

KEPT_BY_ACTIVATION: Mapping[str, float] = MappingProxyType(
    {
        "gelu_10": 2,
        "gelu_accurate": 4,
        "gelu_fast": 7,
        "gelu_new": 4,
        "gelu_python": 3,
        "gelu_python_tanh": 4,
        "linear": 0,
        "quick_gelu": 2,
        "relu": 0,
        "sigmoid": 0,
        "tanh": 0,
        "xielu": 4.5,
    }
)
"""Numbers per channel that an activation keeps beside its result, where that is not its input alone, which is 1."""


@dataclass(frozen=True)
class Computing:
    """How a layer computes.

    Attributes:
        norm: `rms` keeps its input in the type it computes in and the rounded quotient; `fused_rms` both in that type;
            `layer`, a fused layer norm, its input alone.
        norm_bytes: of a number in the type that norms compute in; None where that is the model's own.
        kept_by_activation: numbers per channel that the activation keeps beside its result.
        merged_and_cached: whether keys and values are copied into a cache out of a projection that holds queries too.
        attention_dropout, hidden_dropout, residual_dropout: whether dropout falls on attention weights, on hidden units
            of a feed-forward, and on what a half adds to the stream.
        embedding_dropout: the same of the embedded tokens.
        mask_bytes: of one entry of a dropout's mask; None for the type of what it falls on.
        softmax_bytes: of one score in written-out attention; None for the model's own type.
        causal_mask: whether written-out attention keeps which keys a query sees.
        rotary_bytes: of a cosine; None for the model's own type.
    """

    norm: Norm = "rms"
    norm_bytes: int | None = FLOAT32
    kept_by_activation: float = 1
    merged_and_cached: bool = False
    attention_dropout: bool = False
    hidden_dropout: bool = False
    residual_dropout: bool = False
    embedding_dropout: bool = False
    mask_bytes: int | None = None
    softmax_bytes: int | None = FLOAT32
    rotary_bytes: int | None = None
    causal_mask: bool = True

    def mask(self, width: int) -> int:
        """Bytes of an entry of a dropout's mask, in a model whose numbers have `width`."""
        return width if self.mask_bytes is None else self.mask_bytes

    def norm_of(self, dim: int, width: int) -> float:
        """Bytes that a norm over `dim` numbers keeps per token, without its result, which its reader keeps."""
        wide = width if self.norm_bytes is None else self.norm_bytes
        if self.norm == "layer":
            return dim * width
        return dim * (wide + (width if self.norm == "rms" else wide)) + wide


def kept_by_activation(name: str) -> float:
    """Numbers per channel that the activation called so keeps beside its result."""
    return KEPT_BY_ACTIVATION.get(name, 1)
