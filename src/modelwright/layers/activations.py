"""The activation functions that a config may name, as modules: what transformers' ``ACT2FN`` makes of the same names.

transformers' own are not used because importing them brings in a second's worth of what no pass needs.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelwright.layers.quick_gelu import QuickGELU


class Elementwise(nn.Module):
    """A function of each number, without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class XIELU(nn.Module):
    """xIELU (arXiv:2411.13010), whose two slopes are learned and stored as they are before softplus."""

    def __init__(self, positive: float = 0.8, negative: float = 0.8, beta: float = 0.5, eps: float = -1e-6):
        super().__init__()
        number = partial(torch.tensor, dtype=torch.bfloat16)
        self.alpha_p = nn.Parameter(torch.log(torch.expm1(number(positive))).unsqueeze(0))
        self.alpha_n = nn.Parameter(torch.log(torch.expm1(number(negative - beta))).unsqueeze(0))
        self.register_buffer("beta", number(beta))
        self.register_buffer("eps", number(eps))
        self.beta: Tensor
        self.eps: Tensor

    def forward(self, x: Tensor) -> Tensor:
        above = F.softplus(self.alpha_p) * x * x
        below = (torch.expm1(torch.min(x, self.eps)) - x) * (self.beta + F.softplus(self.alpha_n))
        return torch.where(x > 0, above + self.beta * x, below + self.beta * x)


def _tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _clipped_gelu(x: Tensor) -> Tensor:
    return torch.clip(F.gelu(x), -10, 10)


def _erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def _squared_relu(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def _root_of_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_10": partial(Elementwise, _clipped_gelu),
    "gelu_fast": partial(Elementwise, _fast_gelu),
    "gelu_new": partial(Elementwise, _tanh_gelu),
    "gelu_python": partial(Elementwise, _erf_gelu),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "gelu_python_tanh": partial(Elementwise, _tanh_gelu),
    "gelu_accurate": partial(Elementwise, _tanh_gelu),
    "hardswish": nn.Hardswish,
    "laplace": partial(Elementwise, _laplace),
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
    "mish": nn.Mish,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "relu2": partial(Elementwise, _squared_relu),
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "sqrtsoftplus": partial(Elementwise, _root_of_softplus),
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "prelu": nn.PReLU,
    "xielu": XIELU,
}
"""What makes the module of each name."""


def activation(name: str) -> nn.Module:
    """A new module of the function that transformers calls ``name``.

    Raises:
        KeyError: there is none of that name.
    """
    return ACTIVATIONS[name]()
